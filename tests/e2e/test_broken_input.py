# SPDX-License-Identifier: Apache-2.0
"""Broken input: one clear sentence, a non-zero exit, nothing deployed."""

import re

import pytest
import yaml

BREAKS = {
    "a missing column": (
        {"examples": {"label": "no_such_label"}},
        r"no_such_label",
    ),
    "a constant label": (
        {"examples": {"query": "SELECT *, 1.5 AS constant FROM ({query})", "label": "constant"}},
        r"constant.*(single value|same value|does not vary)",
    ),
    "an unknown entity key": (
        {"examples": {"query": "SELECT * EXCLUDE (origin) FROM ({query})", "entities": []}},
        r"origin",
    ),
    "a wrong type": ({"training": {"epochs": "many"}}, r"line \d+: training.epochs: .*'many'"),
    "an absent feature service": (
        {"features": {"service": "no_such_service"}},
        r"no_such_service.*station_weather|no_such_service",
    ),
    "an empty month": (
        {"split": {"since": "2019-01-01", "at": "2019-02-01", "until": "2019-03-01"}},
        r"no row|empty",
    ),
    "SQL that names an absent column": (
        {"examples": {"query": "SELECT no_such_column FROM weather"}},
        r"no_such_column",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_broken_input_is_one_sentence_and_nothing_is_deployed(kfloop, project, case):
    change, sentence = BREAKS[case]
    loop = yaml.safe_load((project / "loop.yaml").read_text())
    query = (project / loop["examples"]["query"]).read_text()
    for section, keys in change.items():
        for key, value in keys.items():
            text = value.format(query=query) if isinstance(value, str) else value
            loop.setdefault(section, {})[key] = text
    loop["name"] = "broken"
    (project / "broken.yaml").write_text(yaml.safe_dump(loop, sort_keys=False))
    done = kfloop("run", "training", "--config", "broken.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert re.search(sentence, " ".join(done.stderr.split())), done.stderr
    assert not (project / ".kfloop" / "services" / "broken").exists()
    assert not (project / ".kfloop" / "models" / "broken").exists()
