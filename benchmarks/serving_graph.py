# SPDX-License-Identifier: Apache-2.0
"""A package's graph alone, by ONNX Runtime and by TensorFlow, for batches of several sizes.

Run in the environment of the serving family with the checkout's code on PYTHONPATH as `kfloop`::

    python benchmarks/serving_graph.py [--package DIRECTORY]

The two answer the same rows of the package's reference in turn, as the model server calls them.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import REFERENCE, read_model_json
from kfloop.components.contracts.runtime import ONNX_RUNTIME, TENSORFLOW, load_graph

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Rows at once, and how often.
RUNS = {1: 2000, 32: 1000, 1000: 100, 5000: 30}


def main() -> None:
    """Prints a row per batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    found = Path.cwd().glob(".kfloop/models/flights/*")
    newest = max(found, key=lambda path: path.stat().st_mtime, default="")
    parser.add_argument("--package", default=str(newest))
    directory = parser.parse_args().package
    package = read_model_json(directory)
    graphs = []
    for runtime in (ONNX_RUNTIME, TENSORFLOW):
        started = time.perf_counter()
        graphs.append(load_graph(directory, package, runtime))
        print(f"{graphs[-1].runtime}: loaded in {time.perf_counter() - started:.1f} s")
    table = pq.read_table(f"{directory}/{REFERENCE}")
    columns = model_inputs(table, package.features)
    numbers = np.array([columns[name] for name in graphs[0].numbers], np.float32)
    texts = np.array([columns[name] for name in graphs[0].texts], object)
    print("| rows | ONNX Runtime ms | TensorFlow ms | times as fast | largest difference |")
    print("|---:|---:|---:|---:|---:|")
    for rows, times in RUNS.items():
        if rows > len(table):
            continue
        starts = range(0, min(len(table), 50 * rows) - rows + 1, rows)
        batches = [
            [np.ascontiguousarray(each[:, start : start + rows]) for each in (numbers, texts)]
            for start in starts
        ]
        pairs = [[graph(*batch) for graph in graphs] for batch in batches]
        apart = max(float(np.abs(one - other).max()) for one, other in pairs)
        onnx, tensorflow = _medians(graphs, batches, times)
        print(
            f"| {rows:,} | {onnx:.3f} | {tensorflow:.3f} | {tensorflow / onnx:.1f} | {apart:.1g} |"
        )


def _medians(graphs: list[Any], batches: list[Any], times: int) -> list[float]:
    """Returns each graph's median time in ms."""
    taken: list[list[float]] = [[] for _ in graphs]
    for turn in range(times):
        for graph, each in zip(graphs, taken, strict=True):
            started = time.perf_counter()
            graph(*batches[turn % len(batches)])
            each.append((time.perf_counter() - started) * 1000)
    return [sorted(each)[times // 2] for each in taken]


if __name__ == "__main__":
    main()
