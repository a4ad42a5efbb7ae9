# SPDX-License-Identifier: Apache-2.0
"""Sticky assignment and shadow traffic of the local service, with real model servers."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from serving_helpers import manifest

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import log_files, shadow_log
from kfloop.serving import local_state, shadow
from kfloop.serving.traffic import (
    SHADOW_ANNOTATION,
    STICKY_ANNOTATION,
    StickyKey,
    parse_shadow_percent,
    parse_sticky_key,
)

PLANES = [f"N{number}" for number in range(150)]
PREDICT = "/v1/models/split:predict"


@dataclass
class Split:
    """A service of two versions, and what tests ask of it."""

    directory: Path
    log: Path
    packages: dict[str, Path]
    client: httpx.Client

    def apply(self, percent: int, **annotations: str) -> None:
        """Sets the candidate's share and the annotations, and waits until they are in effect."""
        document = manifest("split", self.packages["v1"], self.packages["v2"], percent, self.log)
        document["metadata"]["annotations"] |= annotations
        local_state.apply_manifest(self.directory, document)
        local_state.wait_ready(self.directory)
        wanted = int(annotations.get(SHADOW_ANNOTATION, 0))
        wait(lambda: self.status["shadow"]["percent"] == wanted)

    def ask(self, plane: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """Sends one instance."""
        row = {"distance": 700.0, "seats": 150, "weekend": True, "carrier": "AA", "plane": plane}
        body = {"instances": [row]}
        answer = self.client.post(PREDICT, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def versions(self, **header: str) -> dict[str, str]:
        """Who answers for each plane."""
        return {
            plane: self.ask(plane, {name: plane for name in header.values()}).headers[
                "x-model-version"
            ]
            for plane in PLANES
        }

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.client.get("/").json())


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def split(
    tmp_path_factory: pytest.TempPathFactory, packages: Any, start_service: Any
) -> Iterator[Split]:
    root = tmp_path_factory.mktemp("split")
    directory, log = root / "services" / "split", root / "log"
    document = manifest("split", packages["v1"], packages["v2"], 0, log)
    status = start_service(directory, document)
    with httpx.Client(base_url=status["url"], timeout=30) as client:
        yield Split(directory, log, packages, client)


@pytest.mark.parametrize(
    ("key", "header"), [("field:plane", {}), ("header:X-Plane", {"name": "x-plane"})]
)
def test_equal_keys_are_answered_by_one_version_and_keep_it_as_its_share_grows(
    split: Split, key: str, header: dict[str, str]
) -> None:
    split.apply(20, **{STICKY_ANNOTATION: key})
    few = split.versions(**header)
    assert split.versions(**header) == few
    assert 0.05 < Counter(few.values())["2"] / len(PLANES) < 0.35
    split.apply(60, **{STICKY_ANNOTATION: key})
    many = split.versions(**header)
    assert {plane for plane in PLANES if few[plane] == "2"} < {
        plane for plane in PLANES if many[plane] == "2"
    }
    assert 0.45 < Counter(many.values())["2"] / len(PLANES) < 0.75


def test_a_request_without_the_key_goes_by_its_own_id(split: Split) -> None:
    split.apply(50, **{STICKY_ANNOTATION: "header:x-plane"})
    assert len(set(split.versions().values())) == 2


def rows(log: Path) -> list[dict[str, Any]]:
    found = []
    for version, file in log_files(log):
        found += [row | {"version": version} for row in pq.read_table(file).to_pylist()]
    return found


def test_copies_are_answered_for_the_log_alone(split: Split) -> None:
    split.apply(0, **{SHADOW_ANNOTATION: "100"})
    sent = split.status["shadow"]["sent"]
    ids = [f"copied-{plane}" for plane in PLANES[:40]]
    answers = [split.ask("N1", {"x-request-id": request_id}) for request_id in ids]
    assert {answer.headers["x-model-version"] for answer in answers} == {"1"}
    wait(lambda: split.status["shadow"]["sent"] == sent + len(ids))
    local_state.wait_logged(split.directory)
    live = {row["request_id"]: row for row in rows(split.log)}
    copied = {row["request_id"]: row for row in rows(shadow_log(split.log))}
    assert set(ids) == set(copied)
    for request_id in ids:
        assert (live[request_id]["version"], copied[request_id]["version"]) == ("1", "2")
        assert copied[request_id]["status"] == 200
        assert copied[request_id]["plane"] == "N1"
        # The second model scores higher, so it is its answer and not the live one's.
        assert copied[request_id]["prediction"] > live[request_id]["prediction"]
    metrics = split.client.get("/metrics").text
    assert (
        'kfloop_router_shadow_requests_total{service="split",status="200",version="2"}' in metrics
    )


def test_a_share_of_the_requests_is_copied(split: Split) -> None:
    split.apply(0, **{SHADOW_ANNOTATION: "30"})
    before = split.status["shadow"]["sent"]
    chosen = [shadow.is_copied(f"share-{plane}", 30) for plane in PLANES]
    for plane in PLANES:
        split.ask(plane, {"x-request-id": f"share-{plane}"})
    wait(lambda: split.status["shadow"]["sent"] == before + sum(chosen))
    assert 0.15 < sum(chosen) / len(PLANES) < 0.45


def test_a_candidate_that_hangs_delays_nobody_and_its_copies_are_dropped(split: Split) -> None:
    split.apply(0, **{SHADOW_ANNOTATION: "100"})
    before = split.status["shadow"]
    pid = split.status["predictors"]["v2"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        # Were a live answer to wait for its copy, the first of these would time out.
        for plane in PLANES:
            assert split.ask(plane).headers["x-model-version"] == "1"
        dropped = split.status["shadow"]["dropped"] - before["dropped"]
        assert dropped == len(PLANES) - shadow.MAX_IN_FLIGHT
    finally:
        os.kill(pid, signal.SIGCONT)
    wait(lambda: split.status["shadow"]["sent"] == before["sent"] + shadow.MAX_IN_FLIGHT)


def test_a_malformed_annotation_changes_nothing_and_is_told(split: Split) -> None:
    split.apply(0)
    document = manifest("split", split.packages["v1"], split.packages["v2"], 0, split.log)
    document["metadata"]["annotations"] |= {STICKY_ANNOTATION: "cookie:user"}
    local_state.apply_manifest(split.directory, document)
    wait(lambda: split.status["conditions"][0]["reason"] == "InvalidSpec")
    assert "give header:NAME or field:NAME" in split.status["conditions"][0]["message"]
    assert split.ask("N1").headers["x-model-version"] == "1"


def test_annotations_are_parsed() -> None:
    assert parse_sticky_key("header:X-User-Id") == StickyKey("header", "x-user-id")
    assert parse_sticky_key("field:tailNum") == StickyKey("field", "tailNum")
    assert parse_sticky_key("") is None
    assert (parse_shadow_percent(""), parse_shadow_percent("100")) == (0, 100)
    for text in ("101", "-1", "half", "12.5"):
        with pytest.raises(InputError, match="whole number from 0 to 100"):
            parse_shadow_percent(text)
    for text in ("tailnum", "field:", "cookie:user"):
        with pytest.raises(InputError, match="header:NAME or field:NAME"):
            parse_sticky_key(text)
