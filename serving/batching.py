# SPDX-License-Identifier: Apache-2.0
"""Micro-batches that cost nothing when there is no load.

A request that finds a worker free starts at once, alone. Those that come while all workers are
busy wait together and become the next batch. So batches grow with the load, and no request ever
waits for another one to arrive.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs items in batches on threads; used from one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        workers: int,
        limit: int,
    ) -> None:
        """Starts no thread yet.

        Args:
            run: Answers a batch, in order: a result, or what to raise, for each item.
            workers: How many batches run at the same time.
            limit: Items per batch at most.
        """
        self._run = run
        self._limit = limit
        self._free = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="model")
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()

    async def submit(self, item: Item) -> Result:
        """Returns the result of an item, or raises what `run` has for it."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        self._start()
        return await answer

    def _start(self) -> None:
        while self._waiting and self._free:
            self._free -= 1
            size = min(self._limit, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(size)]
            items = [item for item, _ in batch]
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._run, items)
            work.add_done_callback(partial(self._finish, [answer for _, answer in batch]))

    def _finish(
        self,
        answers: list[asyncio.Future[Result]],
        work: asyncio.Future[Sequence[Result | Exception]],
    ) -> None:
        self._free += 1
        self._start()
        error = work.exception()
        results = [error] * len(answers) if error else work.result()
        for answer, result in zip(answers, results, strict=True):
            if answer.done():  # its client has gone
                continue
            if isinstance(result, BaseException):
                answer.set_exception(result)
            else:
                answer.set_result(result)
