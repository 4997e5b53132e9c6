"""Which implementations are tried with which, who is to blame, and how many stand at once. And that the wire can be bad."""

import threading

import pytest

from tests.conformance.behaviour import Behaviour, Outcome, Pairing, Verdict
from tests.conformance.boxes import Process
from tests.conformance.matrix import spans
from tests.conformance.report import Report, markdown
from tests.conformance.run import Job, Queue, jobs
from tests.conformance.test_command import conduct

NAMES = ["wgpy", "a", "b"]
OWN = [(name, name) for name in NAMES]


def row(seconds: float = 1.0, pairing: Pairing | None = None) -> Behaviour:
    return Behaviour("row", "matrix", "goes on", lambda pair: None, seconds, pairing=pairing)


def report(*outcomes: tuple[str, str, Verdict, str]) -> Report:
    """Of (first, second, verdict, by)."""
    found = [Outcome(one, "row", verdict, "why", 1.0, two, by) for one, two, verdict, by in outcomes]
    return Report([row()], {name: name for name in NAMES}, {}, found, 1.0)


def test_the_judged_one_is_tried_with_each_and_each_with_itself() -> None:
    with_a_and_b = [("wgpy", "a"), ("wgpy", "b")]
    assert Pairing(symmetric=True).pairs(NAMES, "wgpy") == OWN + with_a_and_b
    assert sorted(Pairing().pairs(NAMES, "wgpy")) == sorted([*OWN, *with_a_and_b, ("a", "wgpy"), ("b", "wgpy")])
    assert len(set(Pairing(everyone=True).pairs(NAMES, "wgpy"))) == len(NAMES) ** 2
    assert Pairing().pairs(["a", "b"], "wgpy") == OWN[1:]


def test_what_has_no_pairing_is_tried_on_each() -> None:
    each = [Process(name, ["true"]) for name in NAMES]
    assert [job.on for job in jobs([row()], each, "wgpy")] == [(one,) for one in each]
    assert [tuple(one.name for one in job.on) for job in jobs([row(pairing=Pairing())], each, "a")] == Pairing().pairs(NAMES, "a")


def test_who_fails_with_itself_is_to_blame() -> None:
    both = report(("wgpy", "a", Verdict.BROKEN, ""), ("wgpy", "wgpy", Verdict.HOLDS, ""), ("a", "a", Verdict.BROKEN, ""))
    assert (both.verdict("wgpy", "row"), both.verdict("a", "row")) == (Verdict.HOLDS, Verdict.BROKEN)


def test_where_nobody_fails_with_itself_both_are_to_blame() -> None:
    both = report(("wgpy", "a", Verdict.BROKEN, ""), ("wgpy", "wgpy", Verdict.HOLDS, ""), ("a", "a", Verdict.HOLDS, ""))
    assert (both.verdict("wgpy", "row"), both.verdict("a", "row")) == (Verdict.BROKEN, Verdict.BROKEN)
    assert both.verdict("b", "row") is None


def test_who_has_ended_is_to_blame() -> None:
    both = report(("wgpy", "a", Verdict.BROKEN, "a"), ("wgpy", "wgpy", Verdict.HOLDS, ""), ("a", "a", Verdict.HOLDS, ""))
    assert (both.verdict("wgpy", "row"), both.verdict("a", "row")) == (Verdict.HOLDS, Verdict.BROKEN)


def test_an_error_is_everybodys() -> None:
    both = report(("a", "wgpy", Verdict.ERROR, ""), ("wgpy", "wgpy", Verdict.HOLDS, ""), ("a", "a", Verdict.ERROR, ""))
    assert both.verdict("wgpy", "row") is Verdict.ERROR


def test_the_page_says_with_whom() -> None:
    page = markdown(
        report(("wgpy", "a", Verdict.BROKEN, ""), ("a", "a", Verdict.BROKEN, ""), ("wgpy", "wgpy", Verdict.HOLDS, ""))
    )
    assert "| matrix | goes on | ✓ | ✗ [1] [2] |  |" in page
    assert "1. wgpy with a, row: why" in page
    assert "2. a with a, row: why" in page


def test_no_more_boxes_stand_than_an_implementation_bears() -> None:
    few, many = Process("few", ["true"]), Process("many", ["true"])
    few.at_once = 2
    long, pair, short = Job(row(9), (few,)), Job(row(5), (few, few)), Job(row(1), (many,))
    queue = Queue([short, pair, long])
    with queue.next() as first, queue.next() as second:
        assert (first, second) == (long, short), "there is no room for two more of the first"
        came: list[Job] = []

        def wait() -> None:
            with queue.next() as third:
                came.append(third)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)
        assert came == []
    thread.join(5)
    assert came == [pair]


def test_numbers_are_told_in_spans() -> None:
    assert spans([3, 7, 8, 9]) == "3, 7-9"
    assert spans([1, 3, 5, 7, 9, 11]) == "1, 3, 5, 7, 9, …"


@pytest.mark.e2e
def test_wgpy_speaks_with_itself_over_wires_good_and_bad() -> None:
    rows = ["traffic", "reordering", "narrow-path"]
    assert conduct("--on", "wgpy", *rows) == (0, dict.fromkeys(rows, "holds"))
