"""Calico's selector language, as operators write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.meshes.selector import DEEPEST, LONGEST, parse_selector

LABELS = {"role": "edge", "zone": "eu-west-1", "kubernetes.io/os": "linux", "empty": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "all()",
        "all( )",
        "global()",
        "has(role)",
        "has( kubernetes.io/os )",
        "!has(gpu)",
        "!!has(role)",
        "role == 'edge'",
        'role=="edge"',
        "role != 'core'",
        "gpu != 'yes'",
        "role in {'core', 'edge'}",
        "role in {'edge',}",
        "role not in {'core'}",
        "gpu not in {'a', 'b'}",
        "gpu not in {}",
        "zone contains 'west'",
        "zone starts with 'eu-'",
        'zone starts  with "eu-"',
        "zone ends with '-1'",
        "empty contains ''",
        "role == 'edge' && zone == 'eu-west-1'",
        "role == 'core' || zone == 'eu-west-1'",
        "role == 'edge' || gpu == 'a' && gpu == 'b'",
        "!(role == 'core')",
        "((has(role))) && (!has(gpu) || !all())",
    ],
)
def test_these_match(text: str) -> None:
    assert parse_selector(text)(LABELS)


@pytest.mark.parametrize(
    "text",
    [
        "!all()",
        "has(gpu)",
        "role == 'Edge'",
        "gpu == ''",
        "role != 'edge'",
        "role in {}",
        "gpu in {'a'}",
        "role not in {'core', 'edge'}",
        "zone contains 'east'",
        "gpu contains ''",
        "gpu starts with ''",
        "gpu ends with ''",
        "zone starts with 'west'",
        "zone ends with 'eu'",
        "role == 'edge' && gpu == 'a'",
        "(role == 'edge' || gpu == 'a') && gpu == 'b'",
        "! role == 'edge'",
    ],
)
def test_these_do_not(text: str) -> None:
    assert not parse_selector(text)(LABELS)


@pytest.mark.parametrize(
    "text",
    [
        "role",
        "role = 'edge'",
        "role == edge",
        "role == 'edge",
        "role == 'edge' &&",
        "role == 'edge' & has(zone)",
        "role == 'edge' zone",
        "has()",
        "has(role",
        "all",
        "(has(role)",
        "has(role))",
        "role in 'edge'",
        "role in {'edge'",
        "role in {,}",
        "'edge' == role",
        "role like 'edge'",
        "all()\nall()",
        "(" * (DEEPEST + 1) + "all()" + ")" * (DEEPEST + 1),
        "all() || " * LONGEST + "all()",
        5,
        ["all()"],
    ],
)
def test_these_are_no_selectors(text: object) -> None:
    with pytest.raises(ValueError, match="not a selector") as caught:
        parse_selector(text)
    assert len(str(caught.value)) < 200


@given(st.text(alphabet="all()hsrole!=&|{},' \"instarwcohgb", max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        selector = parse_selector(text)
    except ValueError:
        return
    assert selector(LABELS) in (True, False)
