import io

import pytest

from controller.demo.report import Report, ago, rate, size


def text(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_without_a_terminal_the_output_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    with report.working("lay nodes"):
        pass
    report.promise("n1 to n2 [encrypted]", True, "12 frames")
    report.table(["pair", "seen"], [["n1 to n2", "encrypted"]], right=["seen"])

    output = text(capsys)
    assert "lay nodes  0.0 s" in output
    assert "n1 to n2 [encrypted]  12 frames" in output
    assert "\x1b" not in output and "…" not in output


def test_the_last_word_lists_what_was_broken(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.step("2  A capture")
    report.promise("a holds", True)
    report.promise("b is encrypted", False, "seen in clear")
    report.summary()

    assert "1 of 2 promises did not hold" in text(capsys)
    assert [promise.promise for promise in report.broken] == ["b is encrypted"]


def test_a_report_without_a_promise_does_not_claim_that_all_held() -> None:
    assert Report().document()["held"] is False


def test_a_program_gets_one_document_and_the_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(json=True)
    report.step("1  Ping")
    report.promise("pings are answered", True, "12")
    report.facts["pairs"] = []

    output, progress = capsys.readouterr()
    assert output == "" and "pings are answered" in progress
    document = report.document()
    assert document["held"] is True and document["pairs"] == []
    assert document["promises"] == [{"step": "1  Ping", "promise": "pings are answered", "held": True, "seen": "12"}]


def test_a_terminal_without_unicode_gets_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    report = Report()
    report.promise("a", True)
    report.promise("b", False)
    report.table(["x"], [["y"]])
    report.step("n1 to n2")
    stream.flush()

    assert b"ok a" in stream.buffer.getvalue() and b"FAILED b" in stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "never"), (0.4, "now"), (7.2, "7 s ago"), (119, "119 s ago"), (180, "3 min ago")]
)
def test_ages_read_well(seconds: float | None, words: str) -> None:
    assert ago(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_140_000, "3.1 MB"), (5 * 10**13, "50.0 TB")]
)
def test_sizes_read_well(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(("bits", "words"), [(1.534e9, "1.53 Gb/s"), (640e6, "640 Mb/s"), (9.9e8, "990 Mb/s")])
def test_rates_read_well(bits: float, words: str) -> None:
    assert rate(bits) == words
