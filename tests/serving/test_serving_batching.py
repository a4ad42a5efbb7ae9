# SPDX-License-Identifier: Apache-2.0
"""Micro-batches: no waiting without load, everything that waited together under it."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from kfloop.serving.batching import Batcher


class Doubler:
    """Doubles numbers, when it is let; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        assert self.may_go.wait(10)
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


def run(items: list[int], limit: int = 100, workers: int = 1) -> tuple[list[Any], list[list[int]]]:
    """Submits items while the first one is still being worked on."""
    doubler = Doubler()

    async def submit() -> list[Any]:
        batcher = Batcher(doubler, workers, limit)
        tasks = [asyncio.ensure_future(batcher.submit(item)) for item in items]
        await asyncio.sleep(0)
        doubler.may_go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(submit()), doubler.batches


def test_the_first_starts_alone_and_the_others_are_one_batch() -> None:
    results, batches = run([1, 2, 3, 4])
    assert results == [2, 4, 6, 8]
    assert batches == [[1], [2, 3, 4]]


def test_every_free_worker_starts_one() -> None:
    results, batches = run([1, 2, 3, 4], workers=2)
    assert results == [2, 4, 6, 8]
    assert sorted(batches) == [[1], [2], [3, 4]]


def test_a_batch_has_a_limit_and_nobody_is_left_behind() -> None:
    results, batches = run(list(range(8)), limit=3)
    assert results == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [len(batch) for batch in batches] == [1, 3, 3, 1]


def test_an_error_is_raised_where_it_belongs() -> None:
    results, _ = run([1, -2, 3])
    assert (results[0], results[2]) == (2, 6)
    assert isinstance(results[1], ValueError)


def test_a_client_that_has_gone_disturbs_nobody() -> None:
    doubler = Doubler()

    async def submit() -> int:
        batcher = Batcher(doubler, 1, 10)
        first = asyncio.ensure_future(batcher.submit(1))
        gone = asyncio.ensure_future(batcher.submit(2))
        last = asyncio.ensure_future(batcher.submit(3))
        await asyncio.sleep(0)
        first.cancel()
        gone.cancel()
        await asyncio.sleep(0)
        doubler.may_go.set()
        return await last

    assert asyncio.run(submit()) == 6


def test_a_batch_that_fails_as_a_whole_fails_its_own_only() -> None:
    calls: list[int] = []

    def fail_once(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if len(calls) == 1:
            raise MemoryError("no")
        return list(items)

    async def submit() -> int:
        batcher = Batcher(fail_once, 1, 10)
        with pytest.raises(MemoryError):
            await batcher.submit(1)
        return await batcher.submit(2)

    assert asyncio.run(submit()) == 2
