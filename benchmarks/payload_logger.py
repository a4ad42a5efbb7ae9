# SPDX-License-Identifier: Apache-2.0
"""How many events the payload logger takes and writes on one core, and in how much memory.

Run in the environment of the serving family, with the checkout's code on PYTHONPATH as `kfloop`::

    python benchmarks/payload_logger.py

The logger runs as a process pinned to one core; a client in this process sends in a closed loop
over eight connections, from another core, as fast as it is answered or at a given rate. Requests
have one row of 20 features, as V1. Each line is one run: KServe's events one by one, or our model
server's batches of 100 requests. `written` counts until the last row is in a file.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import psutil

from kfloop.serving.event_sender import Answered, EventSender
from kfloop.serving.payload_events import BATCH, PREFIX

CONNECTIONS = 8
EVENTS = 20_000
BATCH_REQUESTS = 100
ROW = {f"feature_{number}": number * 1.5 for number in range(15)} | {
    f"text_{number}": f"value {number}" for number in range(5)
}
REQUEST = json.dumps({"instances": [ROW]}).encode()
RESPONSE = json.dumps({"predictions": [{"probability": 0.123456789}]}).encode()


def main() -> None:
    """Measures each case once and prints a table."""
    print("| events | answered/s | written/s | CPU µs per event | dropped | memory MB |")
    print("|---|---|---|---|---|---|")
    for name, batch, rate in (
        ("KServe's, as fast as it answers", 1, 0),
        ("KServe's, 1000/s", 1, 1000),
        ("batches, as fast as it answers", BATCH_REQUESTS, 0),
        ("batches, 4000/s", BATCH_REQUESTS, 4000),
    ):
        print(f"| {name} | {' | '.join(_case(batch, rate))} |", flush=True)


def _case(batch: int, rate: int) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kfloop.serving.payload_logger", "--port", "0"),
                *("--directory", directory, "--flush_seconds", "1"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["url"]
        cores = sorted(os.sched_getaffinity(0))
        # All of its threads; those made later inherit it.
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores[:1])
        os.sched_setaffinity(0, cores[1:] or cores)
        asyncio.run(_send(url, _posts(batch, "warm", 400)))
        seen = psutil.Process(process.pid)
        used = sum(seen.cpu_times()[:2])
        posts = _posts(batch, "timed", EVENTS)
        started = time.perf_counter()
        asyncio.run(_send(url, posts, rate / (2 * batch) if batch > 1 else rate))
        answered = time.perf_counter() - started
        while (state := _metrics(url))["queued"] or state["unflushed"]:
            time.sleep(0.02)
        ended = time.perf_counter() - started
        used = sum(seen.cpu_times()[:2]) - used
        memory = _peak(process.pid)
        os.sched_setaffinity(0, cores)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    written = EVENTS - state["dropped"]
    return [
        f"{EVENTS / answered:.0f}",
        f"{written / ended:.0f}",
        f"{used / EVENTS * 1e6:.0f}",
        f"{state['dropped']:.0f}",
        f"{memory:.0f}",
    ]


def _posts(batch: int, name: str, events: int) -> list[bytes]:
    """Returns whole HTTP requests, made before the clock starts."""
    if batch == 1:
        return [
            _post(body, kind, f"{name}-{number}")
            for number in range(events // 2)
            for kind, body in (("request", REQUEST), ("response", RESPONSE))
        ]
    sender = EventSender("http://127.0.0.1:1/", "flights", "ml")
    posts = []
    for first in range(0, events // 2, batch):
        batched = [
            event
            for number in range(first, first + batch)
            for event in sender._events(
                Answered(
                    *(f"{name}-{number}", "3", 200, datetime.now(UTC), 0.004),
                    *("application/json", REQUEST, RESPONSE),
                )
            )
        ]
        body = json.dumps(batched).encode()
        head = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: {BATCH}\r\n"
        posts.append(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    sender.close()
    return posts


def _post(body: bytes, kind: str, number: str) -> bytes:
    return (
        f"POST / HTTP/1.1\r\nhost: x\r\nce-specversion: 1.0\r\nce-id: {number}\r\n"
        f"ce-type: {PREFIX}{kind}\r\nce-source: http://localhost:9081/\r\n"
        f"ce-time: 2026-07-01T12:00:00.123456789Z\r\nce-inferenceservicename: flights\r\n"
        "ce-namespace: ml\r\nce-component: predictor\r\nce-endpoint:\r\nce-metadata: {}\r\n"
        'ce-annotations: {"kfloop.org/model-version":"3"}\r\n'
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _send(url: str, posts: list[bytes], rate: float = 0.0) -> None:
    """Sends all posts over a few connections; with a rate, so many a second."""
    left = iter(enumerate(posts))
    started = time.perf_counter()

    async def connection() -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for number, post in left:
            if rate and (wait := started + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            writer.write(post)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 202"), head
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))


def _metrics(url: str) -> dict[str, float]:
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    names = {
        "queued": r"kfloop_payload_queued_events",
        "unflushed": r"kfloop_payload_unflushed_rows",
        "dropped": r'kfloop_payload_events_total\{outcome="dropped".*?\}',
    }
    return {
        name: sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))
        for name, pattern in names.items()
    }


def _peak(pid: int) -> float:
    """Returns the most memory a process had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


if __name__ == "__main__":
    main()
