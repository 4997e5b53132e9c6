"""One page that needs nothing else and carries what was signed."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from controller.compliance.render_html import extract, render
from controller.compliance.requirements import FRAMEWORKS
from tests.controller.compliance.documents import signed


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_page_carries_the_document_and_is_the_same_each_time(tmp_path: Path, framework: str) -> None:
    document = signed(tmp_path, framework)

    assert json.loads(extract(render(document))) == document
    assert render(json.loads(extract(render(document)))) == render(document)


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    document = signed(tmp_path)
    document["statement"]["nodes"] = ["</script><script>alert(1)</script>&<b>"]
    page = render(document)

    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append(tag)  # type: ignore[method-assign]
    parser.feed(page.decode())
    assert found.count("script") == 1 and "b" not in found
    assert json.loads(extract(page)) == document and b"<" not in extract(page)


def test_it_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = render(signed(tmp_path)).decode()

    assert not any(word in page for word in ("http:", "https:", "src=", "@import", "url("))


@pytest.mark.parametrize("page", [b"", b"<html></html>", b"\xff\xfe"])
def test_a_page_without_a_report_is_refused(page: bytes) -> None:
    with pytest.raises(ValueError, match=r"page|codec"):
        extract(page)


def test_so_is_one_with_two(tmp_path: Path) -> None:
    page = render(signed(tmp_path))

    with pytest.raises(ValueError, match="one signed report"):
        extract(page + page)
