"""Trying every behaviour on every implementation, many at a time: most of them wait.

Each trial has a box of its own, so trials do not know of each other, and are run by as many threads as there may be boxes. The
long ones begin first; those that need the machine for themselves come last, one after the other.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from controller.demo.topology import Topology, TopologyError
from tests.conformance.behaviour import Behaviour, Broken, NotApplicable, Outcome, Verdict
from tests.conformance.boxes import ConformanceError, Implementation, Plan
from tests.conformance.trial import Trial

AT_ONCE = 24
"""Trials at a time, of all implementations together: two cores can start no more without being late."""

Told = Callable[[Outcome], None]


def try_all(implementations: Sequence[Implementation], behaviours: Iterable[Behaviour], told: Told) -> list[Outcome]:
    """Try them all; ``told`` hears of each outcome as it comes, in the thread of the caller."""
    behaviours = list(behaviours)
    outcomes: list[Outcome] = []
    numbers = Numbers()
    try:
        with Topology.create() as topology:
            together = [(each, what) for what in behaviours if not what.alone for each in implementations]
            together.sort(key=lambda pair: -pair[1].seconds)
            limits = {each.name: threading.Semaphore(each.at_once) for each in implementations}
            pool = ThreadPoolExecutor(AT_ONCE)
            try:
                futures = [pool.submit(_limited, limits[each.name], each, what, topology, numbers) for each, what in together]
                for future in as_completed(futures):
                    outcomes.append(future.result())
                    told(outcomes[-1])
            finally:
                pool.shutdown(cancel_futures=True)
            for what, each in itertools.product(behaviours, implementations):
                if what.alone:
                    outcomes.append(try_one(each, what, topology, numbers))
                    told(outcomes[-1])
    finally:
        for each in implementations:
            each.close()
    return outcomes


class Numbers:
    """The numbers of trials, 1 to 255, each in use once at a time."""

    def __init__(self) -> None:
        self._free = list(range(255, 0, -1))
        self._lock = threading.Lock()

    def take(self) -> int:
        with self._lock:
            return self._free.pop()

    def give(self, number: int) -> None:
        with self._lock:
            self._free.insert(0, number)


def _limited(limit: threading.Semaphore, each: Implementation, what: Behaviour, topology: Topology, numbers: Numbers) -> Outcome:
    with limit:
        return try_one(each, what, topology, numbers)


def try_one(implementation: Implementation, what: Behaviour, topology: Topology, numbers: Numbers) -> Outcome:
    """One trial. Whatever goes wrong is an outcome."""
    began = time.monotonic()

    def outcome(verdict: Verdict, said: object = "") -> Outcome:
        text = " ".join(str(said).split())
        return Outcome(implementation.name, what.name, verdict, text, round(time.monotonic() - began, 2))

    number = numbers.take()
    try:
        trial = Trial(implementation.box(topology, Plan(number)))
        try:
            what.try_on(trial)
        finally:
            trial.close()
    except Broken as broken:
        return outcome(Verdict.BROKEN, broken)
    except NotApplicable as reason:
        return outcome(Verdict.NOT_APPLICABLE, reason)
    except (ConformanceError, TopologyError, OSError) as error:
        return outcome(Verdict.ERROR, error)
    except Exception as error:  # a behaviour with a mistake in it must not end the others
        return outcome(Verdict.ERROR, f"{type(error).__name__}: {error}")
    finally:
        numbers.give(number)
    return outcome(Verdict.HOLDS)
