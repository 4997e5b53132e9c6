"""The report as one HTML page that needs nothing else: style and signed document are in it, and there is no script to run.
Pure."""

import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from controller.compliance.layout import Block, Bullets, Document, Facts, Heading, Note, Paragraph, Table, blocks, title

_OPEN = '<script type="application/json" id="wgpy-report">'
_CLOSE = "</script>"
_SLUGS = {"supports": "good", "does not support": "bad", "not known": "open", "for information": "plain"}

_STYLE = """
:root { --ink: #1b2430; --soft: #5b6675; --line: #d8dee6; --shade: #f4f6f9; --page: #fff; --accent: #1d4f8c;
  --good: #1a6b3c; --bad: #a4262c; --open: #8a5a00; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa6b5; --line: #37414e; --shade: #1f2630;
  --page: #161b22; --accent: #8ab4f0; --good: #6fcf97; --bad: #ff8a8a; --open: #f0c060; } }
@media print { :root { --ink: #1b2430; --soft: #5b6675; --line: #d8dee6; --shade: #f4f6f9; --page: #fff; --accent: #1d4f8c;
  --good: #1a6b3c; --bad: #a4262c; --open: #8a5a00; } tr { break-inside: avoid; } h2 { break-after: avoid; } }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
header { border-bottom: 3px solid var(--accent); padding-bottom: .75rem; margin-bottom: 1.25rem; }
header p { margin: 0; color: var(--soft); letter-spacing: .06em; text-transform: uppercase; font-size: .78rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .25rem 0 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line); overflow-wrap:
anywhere; } thead th { background: var(--shade); font-weight: 600; }
.facts th { width: 14rem; font-weight: 600; color: var(--soft); }
code { font: .92em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.note { border-left: 4px solid var(--open); background: var(--shade); padding: .7rem 1rem; margin: 1.25rem 0; }
.note strong { display: block; }
.outcome { font-weight: 600; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); } .plain { color: var(--soft); }
"""


def render(document: Document) -> bytes:
    """The page. The same document gives the same bytes."""
    name = escape(title(document))
    body = "\n".join(_block(block) for block in blocks(document))
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name}</title>\n<style>{_STYLE}</style>\n'
        f"</head>\n<body>\n<header><p>wgpy compliance report</p><h1>{name}</h1></header>\n<main>\n{body}\n</main>\n"
        f"{_OPEN}{_json(document)}{_CLOSE}\n</body>\n</html>\n"
    )
    return page.encode()


def extract(page: bytes) -> bytes:
    """The signed document in a page. Raises ValueError if there is not exactly one."""
    found = re.findall(re.escape(_OPEN) + "(.*?)" + re.escape(_CLOSE), page.decode(), re.DOTALL)
    if len(found) != 1:
        raise ValueError("the page does not carry one signed report")
    return str(found[0]).encode()


def _json(document: Document) -> str:
    """Without a character that HTML could take for its own: JSON's escapes say the same."""
    text = json.dumps(document, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Note(heading, text):
            return f'<div class="note" role="note"><strong>{escape(heading)}</strong>{escape(text)}</div>'
        case Bullets(texts):
            return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
        case Facts(rows):
            cells = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
            return f'<table class="facts"><tbody>{cells}</tbody></table>'
        case Table():
            return "".join(_table(block))


def _table(table: Table) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr>'
    yield from (f'<th scope="col" style="width:{width}%">{escape(name)}</th>' for name, width in zip(table.columns, table.widths))
    yield "</tr></thead><tbody>"
    for row in table.rows:
        yield "<tr>" + "".join(f"<td>{_cell(table, column, text)}</td>" for column, text in enumerate(row)) + "</tr>"
    yield "</tbody></table></div>"


def _cell(table: Table, column: int, text: str) -> Any:
    if column == table.outcome:
        return f'<span class="outcome {_SLUGS[text]}">{escape(text)}</span>'
    return f"<code>{escape(text)}</code>" if column in table.code else escape(text)
