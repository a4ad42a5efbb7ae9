# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between a client and the server, on purpose."""

import fnmatch
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

KINDS = ("drop", "drop_after", "hang", "conflict_write")


@dataclass
class Fault:
    """One kind of trouble.

    Attributes:
        what: An HTTP status to answer instead of executing the request, or one of `KINDS`:
            `drop` closes the connection before the request is executed, `drop_after` executes it
            and answers nothing, `hang` answers late, and `conflict_write` lets somebody else
            write the object just before.
        verb: Only requests of this verb (get, list, watch, create, update, patch, delete).
        resource: Only requests for this plural, or pattern of plurals.
        name: Only requests for the object of this name.
        subresource: Only requests for this subresource; "-" for those without one.
        retry_after: Seconds that a 429 or 503 asks to wait.
        seconds: How long `hang` takes.
        left: How often it still happens; None is always.
    """

    what: int | str
    verb: str = ""
    resource: str = ""
    name: str = ""
    subresource: str = ""
    retry_after: int = 0
    seconds: float = 0.5
    left: int | None = 1

    def fits(self, verb: str, resource: str, name: str, subresource: str) -> bool:
        """Whether a request is one of those meant."""
        wanted = "" if self.subresource == "-" else self.subresource
        return (
            self.left != 0
            and self.verb in ("", verb)
            and (not self.resource or fnmatch.fnmatch(resource, self.resource))
            and self.name in ("", name)
            and (not self.subresource or subresource == wanted)
        )


@dataclass
class Storm:
    """Random trouble.

    Attributes:
        share: Probability for each request that fits.
        kinds: What may happen, one is drawn.
        random: Draws, from a seed.
        only: Which requests.
    """

    share: float
    kinds: Sequence[int | str]
    random: random.Random
    only: Fault


@dataclass
class Faults:
    """The trouble of one server; nothing at first.

    Attributes:
        happened: What happened so far, in order.
    """

    happened: list[Fault] = field(default_factory=list)
    _next: list[Fault] = field(default_factory=list)
    _storms: list[Storm] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watches: int = 0

    def next(
        self,
        what: int | str,
        *,
        times: int | None = 1,
        verb: str = "",
        resource: str = "",
        name: str = "",
        subresource: str = "",
        retry_after: int = 0,
        seconds: float = 0.5,
    ) -> Fault:
        """Lets the next fitting requests fail; see `Fault`. `times=None` is until `clear`.

        Raises:
            ValueError: If `what` is neither a status nor a known word.
        """
        fault = Fault(what, verb, resource, name, subresource, retry_after, seconds, times)
        _check(what)
        with self._lock:
            self._next.append(fault)
        return fault

    def storm(
        self,
        share: float,
        kinds: Sequence[int | str],
        *,
        seed: int = 0,
        verb: str = "",
        resource: str = "",
        subresource: str = "",
    ) -> None:
        """Lets a share of the fitting requests fail at random, until `clear`.

        Raises:
            ValueError: If a kind is not known.
        """
        for what in kinds:
            _check(what)
        only = Fault(0, verb, resource, subresource=subresource, left=None)
        with self._lock:
            self._storms.append(Storm(share, tuple(kinds), random.Random(seed), only))

    def clear(self) -> None:
        """Ends all trouble."""
        with self._lock:
            self._next.clear()
            self._storms.clear()

    def drop_watches(self) -> None:
        """Cuts every watch that is open now, without a goodbye."""
        self._watches += 1

    @property
    def watches_cut(self) -> int:
        """How often the watches were cut."""
        return self._watches

    def draw(self, verb: str, resource: str, name: str, subresource: str) -> Fault | None:
        """Returns what happens to a request, and counts it."""
        with self._lock:
            found = next((f for f in self._next if f.fits(verb, resource, name, subresource)), None)
            if found is not None:
                if found.left is not None:
                    found.left -= 1
                self.happened.append(found)
                return found
            for storm in self._storms:
                fits = storm.only.fits(verb, resource, name, subresource)
                if fits and storm.random.random() < storm.share:
                    fault = Fault(storm.random.choice(storm.kinds), verb, resource, name)
                    self.happened.append(fault)
                    return fault
        return None


def _check(what: int | str) -> None:
    if what not in KINDS and not (isinstance(what, int) and 400 <= what < 600):
        raise ValueError(f"{what!r} is no fault; use an HTTP status or one of {', '.join(KINDS)}")
