"""Trying every behaviour on every implementation, or pair of them, many at a time: most of them wait.

Each trial has boxes of its own, so trials do not know of each other. The long ones begin first; when a thread is free, it takes
the first for whose boxes there is room. Those that need the machine for themselves come last, one after the other.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from controller.demo.topology import Topology, TopologyError
from tests.conformance.behaviour import Behaviour, Broken, NotApplicable, Outcome, Verdict
from tests.conformance.boxes import Box, ConformanceError, Implementation, Plan
from tests.conformance.pair import Pair
from tests.conformance.trial import Trial

AT_ONCE = 28
"""Trials at a time, of all implementations together: two cores can start no more without being late."""

Told = Callable[[Outcome], None]


@dataclass(frozen=True)
class Job:
    """A behaviour, and the implementation, or the two, to try it on."""

    what: Behaviour
    on: tuple[Implementation, ...]


def jobs(behaviours: Iterable[Behaviour], implementations: Sequence[Implementation], judged: str) -> list[Job]:
    """All there is to try, in the order of the table."""
    named = {each.name: each for each in implementations}
    found = []
    for what in behaviours:
        if what.pairing is None:
            found += [Job(what, (each,)) for each in implementations if each.name == judged or not what.promised]
        else:
            found += [Job(what, (named[one], named[two])) for one, two in what.pairing.pairs(list(named), judged)]
    return found


def try_all(work: Sequence[Job], told: Told) -> list[Outcome]:
    """Try it all; ``told`` hears of each outcome as it comes, in the thread of the caller."""
    outcomes: list[Outcome] = []
    numbers = Numbers()
    together = Queue(job for job in work if not job.what.alone)
    try:
        with Topology.create() as topology:

            def try_next() -> Outcome:
                with together.next() as job:
                    return try_one(job, topology, numbers)

            pool = ThreadPoolExecutor(AT_ONCE)
            try:
                for future in as_completed([pool.submit(try_next) for _ in range(len(together))]):
                    outcomes.append(future.result())
                    told(outcomes[-1])
            finally:
                pool.shutdown(cancel_futures=True)
            for job in work:
                if job.what.alone:
                    outcomes.append(try_one(job, topology, numbers))
                    told(outcomes[-1])
    finally:
        for each in {each.name: each for job in work for each in job.on}.values():
            each.close()
    return outcomes


class Queue:
    """Jobs that wait, the long ones first, and the boxes that stand, of which each implementation bears so many."""

    def __init__(self, work: Iterable[Job]) -> None:
        self._waiting = sorted(work, key=lambda job: -job.what.seconds)
        self._standing: Counter[str] = Counter()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def next(self) -> Iterator[Job]:
        """The next job for whose boxes there is room, as soon as there is one; the room is taken meanwhile."""
        with self._changed:
            while (job := next(filter(self._has_room, self._waiting), None)) is None:
                self._changed.wait()
            self._waiting.remove(job)
            self._standing.update(each.name for each in job.on)
        try:
            yield job
        finally:
            with self._changed:
                self._standing.subtract(each.name for each in job.on)
                self._changed.notify_all()

    def _has_room(self, job: Job) -> bool:
        return all(self._standing[each.name] + job.on.count(each) <= each.at_once for each in job.on)


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


def try_one(job: Job, topology: Topology, numbers: Numbers) -> Outcome:
    """One trial. Whatever goes wrong is an outcome."""
    began = time.monotonic()
    name, partner = (*(each.name for each in job.on), "")[:2]

    def outcome(verdict: Verdict, said: object = "", by: str = "") -> Outcome:
        text = " ".join(str(said).split())
        return Outcome(name, job.what.name, verdict, text, round(time.monotonic() - began, 2), partner, by)

    taken = [numbers.take() for _ in job.on]
    try:
        with _trial(job, topology, taken) as trial:
            return outcome(Verdict.HOLDS, job.what.try_on(trial) or "")
    except Broken as broken:
        return outcome(Verdict.BROKEN, broken, broken.by)
    except NotApplicable as reason:
        return outcome(Verdict.NOT_APPLICABLE, reason)
    except (ConformanceError, TopologyError, OSError) as error:
        return outcome(Verdict.ERROR, error)
    except Exception as error:  # a behaviour with a mistake in it must not end the others
        return outcome(Verdict.ERROR, f"{type(error).__name__}: {error}")
    finally:
        for number in taken:
            numbers.give(number)


@contextmanager
def _trial(job: Job, topology: Topology, numbers: Sequence[int]) -> Iterator[Trial | Pair]:
    boxes: list[Box] = []
    try:
        for each, number in zip(job.on, numbers, strict=True):
            boxes.append(each.box(topology, Plan(number)))
        trial = Trial(boxes[0]) if job.what.pairing is None else Pair(boxes[0], boxes[1])
    except BaseException:
        for box in boxes:
            box.close()
        raise
    try:
        yield trial
    except Broken as broken:
        if isinstance(trial, Pair) and len(ended := trial.ended()) == 1:
            raise Broken(f"{broken} ({ended[0]} has ended)", ended[0]) from None
        raise
    finally:
        trial.close()
