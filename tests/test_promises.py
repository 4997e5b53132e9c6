import pytest

from tests.promises import STALL_SECONDS, Promises


@pytest.mark.parametrize(
    ("required", "took", "is_kept"),
    [("1", 1.99, True), ("1", 2.0, False), ("", 2.5, True), ("", 2.0 + STALL_SECONDS, False)],
)
def test_a_promise_is_judged_to_the_letter_where_times_are_required_and_with_grace_elsewhere(
    monkeypatch: pytest.MonkeyPatch, required: str, took: float, is_kept: bool
) -> None:
    monkeypatch.setenv("WGPY_REQUIRE_TIMES", required)
    figures: dict[str, str] = {}
    if is_kept:
        Promises(figures).judge("a node joins", took, 2.0)
    else:
        with pytest.raises(AssertionError, match=r"^a node joins: .* s, where 2 s are promised"):
            Promises(figures).judge("a node joins", took, 2.0)
    assert figures == {"a node joins": f"{took:.2f} s ({'under' if took < 2 else 'NOT UNDER'} 2 s)"}
