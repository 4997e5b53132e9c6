"""The report as a PDF on A4, with the signed document attached as ``report.json``.

The same document gives the same bytes: the PDF's date is the report's, and streams are not compressed, as compressors differ.
Letters are those of the PDF's own fonts (Latin-1), so no font has to be carried; what they lack is written as an escape.
"""

import io
import json
from datetime import datetime
from typing import Any

from fpdf import FPDF
from fpdf.enums import TableBordersLayout, XPos, YPos
from fpdf.fonts import FontFace
from pypdf import PdfReader
from pypdf.errors import PyPdfError

from controller.compliance.layout import Block, Bullets, Document, Facts, Heading, Note, Paragraph, Table, blocks, title

ATTACHMENT = "report.json"

_PAPER = (255, 255, 255)
_INK, _SOFT, _LINE, _SHADE, _ACCENT = (27, 36, 48), (91, 102, 117), (216, 222, 230), (244, 246, 249), (29, 79, 140)
_OUTCOMES = {"supports": (26, 107, 60), "does not support": (164, 38, 44), "not known": (138, 90, 0), "for information": _SOFT}
_MARGIN, _TEXT, _SMALL = 16.0, 9.5, 8.0
_KEEP = 30.0
"""Millimetres that have to be left on the page below a heading."""


def render(document: Document) -> bytes:
    """The pages."""
    statement = document["statement"]
    made_at = datetime.fromisoformat(statement["made_at"])
    pdf = _Pages(title(document), f"Made {statement['made_at']} by {statement['made_by']}")
    pdf.set_creation_date(made_at)
    pdf.head()
    for block in blocks(document):
        _draw(pdf, block)
    content = json.dumps(document, ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode()
    pdf.embed_file(
        bytes=content, basename=ATTACHMENT, desc="The signed statement", mime_type="application/json", modification_date=made_at
    )
    return bytes(pdf.output() or b"")


def extract(content: bytes) -> bytes:
    """The signed document in a PDF. Raises ValueError if there is not exactly one."""
    try:
        found = PdfReader(io.BytesIO(content)).attachments.get(ATTACHMENT, [])
    except (PyPdfError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the PDF cannot be read: {error}") from None
    if len(found) != 1:
        raise ValueError("the PDF does not carry one signed report")
    return bytes(found[0])


class _Pages(FPDF):
    """A4 with the report's name and the number of the page at the foot of each."""

    def __init__(self, name: str, made: str) -> None:
        super().__init__(format="A4")
        self._name, self._made = _latin(name), _latin(made)
        self.set_compression(False)
        self.set_title(self._name)
        self.set_lang("en")
        self.set_creator("wgpy")
        self.set_margins(_MARGIN, _MARGIN)
        self.set_auto_page_break(True, 20)
        self.alias_nb_pages()
        self.add_page()

    def head(self) -> None:
        self.set_font("Helvetica", "B", 7.5)
        self.set_text_color(*_SOFT)
        self.cell(0, 5, "WGPY COMPLIANCE REPORT", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.set_font("Helvetica", "B", 17)
        self.set_text_color(*_INK)
        self.multi_cell(0, 8, self._name, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.set_draw_color(*_ACCENT)
        self.set_line_width(0.8)
        self.line(_MARGIN, self.get_y() + 2, self.w - _MARGIN, self.get_y() + 2)
        self.ln(6)

    def footer(self) -> None:
        self.set_y(-14)
        self.set_font("Helvetica", "", 7)
        self.set_text_color(*_SOFT)
        self.cell(0, 5, f"{self._name}. {self._made}", align="L")
        self.set_y(-14)
        self.cell(0, 5, f"Page {self.page_no()} of {{nb}}", align="R")

    def text_block(
        self, text: str, size: float = _TEXT, style: str = "", color: tuple[int, int, int] = _INK, **more: Any
    ) -> None:
        self.set_font("Helvetica", style, size)
        self.set_text_color(*color)
        self.multi_cell(0, size * 0.5, _latin(text), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT, **more)


def _draw(pdf: _Pages, block: Block) -> None:
    match block:
        case Heading(text):
            pdf.ln(5)
            if pdf.will_page_break(_KEEP):
                pdf.add_page()
            pdf.start_section(_latin(text))
            pdf.text_block(text, 12, "B", _ACCENT)
            pdf.ln(1.5)
        case Paragraph(text):
            pdf.text_block(text)
            pdf.ln(1.5)
        case Note(heading, text):
            _draw_note(pdf, heading, text)
        case Bullets(texts):
            pdf.ln(1.5)
            for one in texts:
                pdf.set_font("Helvetica", "", _TEXT)
                pdf.set_text_color(*_INK)
                pdf.cell(4, _TEXT * 0.5, "\xb7", align="C")
                pdf.multi_cell(0, _TEXT * 0.5, _latin(one), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
                pdf.ln(0.8)
        case Facts(rows):
            _draw_facts(pdf, rows)
        case Table():
            _draw_table(pdf, block)


def _draw_note(pdf: _Pages, heading: str, text: str) -> None:
    pdf.ln(3)
    top = pdf.get_y()
    pdf.set_fill_color(*_SHADE)
    pdf.set_left_margin(_MARGIN + 3)
    pdf.set_x(_MARGIN + 3)
    pdf.text_block(heading, _TEXT, "B", fill=True, padding=(2, 2, 0, 2))
    pdf.text_block(text, _TEXT, fill=True, padding=(0.5, 2, 2, 2))
    pdf.set_left_margin(_MARGIN)
    pdf.set_x(_MARGIN)
    pdf.set_draw_color(*_OUTCOMES["not known"])
    pdf.set_line_width(1.2)
    pdf.line(_MARGIN + 2.4, top, _MARGIN + 2.4, pdf.get_y())
    pdf.ln(2)


def _draw_facts(pdf: _Pages, rows: tuple[tuple[str, str], ...]) -> None:
    _ready(pdf, _TEXT - 0.5)
    name, value = FontFace(emphasis="BOLD", color=_SOFT, fill_color=_PAPER), FontFace(color=_INK, fill_color=_PAPER)
    with pdf.table(**_looks((24, 76)), first_row_as_headings=False) as table:
        for words, said in rows:
            row = table.row()
            row.cell(_latin(words), style=name)
            row.cell(_latin(said), style=value)


def _draw_table(pdf: _Pages, block: Table) -> None:
    _ready(pdf, _SMALL)
    plain = FontFace(fill_color=_PAPER)  # else the headings' shade goes on
    code = FontFace(family="Courier", size_pt=_SMALL - 0.8, fill_color=_PAPER)
    headings = FontFace(emphasis="BOLD", color=_INK, fill_color=_SHADE)
    with pdf.table(**_looks(block.widths), headings_style=headings) as table:
        table.row([_latin(name) for name in block.columns])
        for cells in block.rows:
            row = table.row()
            for column, text in enumerate(cells):
                style = code if column in block.code else plain
                if column == block.outcome:
                    style = FontFace(emphasis="BOLD", color=_OUTCOMES[text], fill_color=_PAPER)
                row.cell(_latin(text), style=style)


def _ready(pdf: _Pages, size: float) -> None:
    pdf.set_font("Helvetica", "", size)
    pdf.set_text_color(*_INK)
    pdf.set_draw_color(*_LINE)
    pdf.set_line_width(0.2)


def _looks(widths: tuple[int, ...]) -> dict[str, Any]:
    return {
        "col_widths": widths,
        "borders_layout": TableBordersLayout.HORIZONTAL_LINES,
        "text_align": "LEFT",
        "v_align": "TOP",
        "line_height": 4.1,
        "padding": (1.1, 1.4),
    }


def _latin(text: str) -> str:
    return text.encode("latin-1", "backslashreplace").decode("latin-1")
