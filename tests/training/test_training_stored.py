# SPDX-License-Identifier: Apache-2.0
"""Streaming from disk: the same model as in memory, every row once per epoch, bounded memory."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_training_train import ROLES, SETTINGS, Workspace, binary_table, signature, toy_table

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import REFERENCE

from kfloop.components.training.reading import streams  # isort: skip
from kfloop.components.training.stored import StoredExamples  # isort: skip

import tensorflow as tf  # isort: skip


def stored(directory, rows: int) -> StoredExamples:
    numbers = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    positions = np.arange(rows, dtype=np.int32)[:, None]
    sample = {"numeric": numbers, "categorical": positions}
    label = np.arange(rows, dtype=np.float32)
    examples = StoredExamples(directory / "rows", sample, label)
    for start in range(0, rows, 1000):
        part = slice(start, start + 1000)
        examples.append({name: values[part] for name, values in sample.items()}, label[part])
    return examples


def one_epoch(examples, epoch, batch_size=100, seed=5):
    # 16 bytes a row: a window of two blocks.
    dataset = examples.shuffled(batch_size, seed, tf.Variable(epoch, dtype=tf.int64), 16 * 4500)
    batches = list(dataset.as_numpy_iterator())
    for inputs, label in batches:
        assert inputs["numeric"].shape == (batch_size, 2)
        assert (inputs["numeric"][:, 0] == 2 * label).all()
        assert (inputs["categorical"][:, 0] == label).all()
    return np.concatenate([label for _, label in batches])


def test_an_epoch_gives_whole_batches_of_every_row_in_an_order_of_seed_and_epoch(tmp_path):
    examples = stored(tmp_path, 10_050)
    first = one_epoch(examples, 0)
    assert len(first) == len(set(first)) == 10_000
    assert (first == one_epoch(examples, 0)).all()
    assert (first != one_epoch(examples, 1)).mean() > 0.9
    assert (first != one_epoch(examples, 0, seed=6)).mean() > 0.9
    # Rows of a batch come from more than one block.
    assert np.ptp(first[:100]) > 2100


def test_rows_in_order_come_back_as_written(tmp_path):
    examples = stored(tmp_path, 2_300)
    labels = [label for _, label in examples.in_order(1000, 2_299).as_numpy_iterator()]
    assert [len(label) for label in labels] == [1000, 1000, 299]
    assert (np.concatenate(labels) == np.arange(2_299)).all()


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_streaming_and_memory_give_the_same_quality_and_reference(tmp_path, task, capsys):
    workspace = Workspace(tmp_path)
    label = {"binary": "label", "multiclass": "kind", "regression": "amount"}[task]
    others = {"label", "kind", "amount", "old"} - {label}
    table = toy_table(rows=4000).drop_columns(list(others))
    roles = replace(ROLES, label=label)
    # Both end at rest, so that what is compared is not where the noise of the steps stopped.
    changes = {"task": task, "epochs": 6, "hyperparameters": {"schedule": "cosine"}}
    packages = {
        name: workspace.train(table, name, roles, input=name, **changes)
        for name in ("memory", "stream")
    }
    loss = {name: package.metrics["validation_loss"] for name, package in packages.items()}
    # Another order of the rows is like another seed: on 400 rows that is worth 0.02.
    assert loss["stream"] == pytest.approx(loss["memory"], abs=0.02)
    metric = {"binary": "auc", "multiclass": "accuracy", "regression": "rmse"}[task]
    quality = [package.metrics[f"validation_{metric}"] for package in packages.values()]
    assert quality[0] == pytest.approx(quality[1], rel=0.1)
    references = [
        pq.read_table(tmp_path / name / REFERENCE).drop_columns("prediction")
        for name in ("memory", "stream")
    ]
    assert references[0].equals(references[1])
    printed = capsys.readouterr().out
    assert "held in memory (input is memory)" in printed
    assert "streamed from local disk (input is stream)" in printed


def test_a_streamed_run_is_repeatable_and_leaves_nothing(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    workspace = Workspace(tmp_path)
    for name in ("first", "second"):
        workspace.train(binary_table(rows=600), name, input="stream", epochs=1)
        function = signature(tmp_path / name)
        assert set(function.structured_input_signature[1])
    golden = [pq.read_table(tmp_path / name / REFERENCE) for name in ("first", "second")]
    assert golden[0].equals(golden[1])
    assert not list(scratch.iterdir())


def test_what_does_not_fit_is_streamed(tmp_path, monkeypatch, capsys):
    workspace = Workspace(tmp_path)
    package = workspace.train(binary_table(rows=300), epochs=1)
    train = tmp_path / "train"
    assert not streams("auto", train, package.features)
    monkeypatch.setattr("kfloop.components.training.reading.available_memory", lambda: 300 * 150)
    assert streams("auto", train, package.features)
    assert "is available: it is streamed from local disk." in capsys.readouterr().out
    assert not streams("memory", train, package.features)
    with pytest.raises(InputError, match="must be one of auto, memory, stream"):
        workspace.train(binary_table(rows=300), input="disk")
    assert SETTINGS.input == "auto"
