"""A PDF that is the same for the same report, and carries what was signed."""

import io
import json
from pathlib import Path

import pytest
from pypdf import PdfReader

from controller.compliance.render_pdf import extract, render
from controller.compliance.requirements import FRAMEWORKS
from tests.controller.compliance.documents import signed


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_pdf_carries_the_document_and_is_the_same_each_time(tmp_path: Path, framework: str) -> None:
    document = signed(tmp_path, framework)
    content = render(document)

    assert json.loads(extract(content)) == document
    assert render(json.loads(extract(content))) == content


def test_the_pages_say_what_the_statement_says(tmp_path: Path) -> None:
    document = signed(tmp_path)
    text = " ".join(" ".join(page.extract_text() for page in PdfReader(io.BytesIO(render(document))).pages).split())

    for one in document["statement"]["statements"]:
        assert all(word in text for word in one["text"].split())
    assert "are not FIPS-approved" in text and "does not support" in text and "Page 1 of" in text


def test_letters_that_its_fonts_lack_are_not_lost(tmp_path: Path) -> None:
    document = signed(tmp_path)
    document["statement"]["nodes"] = ["n→1"]

    assert "n\\u21921" in PdfReader(io.BytesIO(render(document))).pages[0].extract_text()


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7\n", b"%PDF-1.7\n%%EOF", b"\x00" * 100])
def test_what_is_no_report_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="PDF"):
        extract(content)
