# SPDX-License-Identifier: Apache-2.0
"""A server that is asked too much must not be held up, or fill a disk, by its own log."""

import json
import logging

import pytest

from kfloop.serving import json_logs, log_lines


@pytest.fixture
def second(monkeypatch):
    """Sets the clock to a second."""
    clock = {"now": 0.0}
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: clock["now"])
    return lambda now: clock.update(now=now)


@pytest.fixture
def lines():
    """What the requests' logger writes, as it is set up in the server."""
    written: list[dict] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(json.loads(log_lines.JsonFormatter().format(record)))

    limit, handler, level = log_lines.AtMost(2), Kept(), json_logs.REQUESTS.level
    json_logs.REQUESTS.setLevel(logging.INFO)
    json_logs.REQUESTS.addFilter(limit)
    json_logs.REQUESTS.addHandler(handler)
    yield written
    json_logs.REQUESTS.removeHandler(handler)
    json_logs.REQUESTS.removeFilter(limit)
    json_logs.REQUESTS.setLevel(level)


def test_requests_beyond_the_limit_are_counted_and_told_in_the_next_second(second, lines):
    second(7.0)
    for number in range(5):
        json_logs.log_request(500, request_id=str(number))
    second(8.0)
    json_logs.log_request(503, request_id="later")
    assert [line["request_id"] for line in lines] == ["0", "1", "later"]
    assert [line.get("suppressed") for line in lines] == [None, None, 3]


def test_a_line_tells_the_request_and_how_bad_it_was(second, lines):
    second(1.0)
    json_logs.log_request(200, seconds=1.5)
    json_logs.log_request(500, seconds=0.1)
    assert [(line["level"], line["status"], line["seconds"]) for line in lines] == [
        ("INFO", 200, 1.5),
        ("ERROR", 500, 0.1),
    ]
