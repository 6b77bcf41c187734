"""A self-contained HTML page: cards, sections, pictures inside it. No script, no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepsentinel.pictures import figures as pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root{--ink:#1f2933;--muted:#66727f;--line:#e4e7eb;--accent:#2f6690;--good:#2f7d5b;--bad:#b23a48}
*{box-sizing:border-box}
body{margin:0;background:#f7f9fa;color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.3rem;margin:0 0 .8rem}
h3{font-size:1rem;margin:1.4rem 0 .5rem}
p{margin:.4rem 0 .8rem;max-width:46rem}
.lead{color:var(--muted);font-size:1.05rem}
section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:1.4rem 1.5rem;
 margin-top:1.4rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:.9rem;
 margin-top:1.4rem}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem}
.card b{display:block;font-size:1.75rem;line-height:1.15;font-variant-numeric:tabular-nums}
.card span{color:var(--muted);font-size:.86rem}
figure{margin:1rem 0 0}
figure img{display:block;max-width:100%;height:auto;border-radius:6px}
figcaption{color:var(--muted);font-size:.86rem;margin-top:.4rem;max-width:46rem}
.row{display:flex;flex-wrap:wrap;gap:1.2rem;align-items:flex-start}
.row>*{flex:1 1 380px;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.36rem .6rem;border-bottom:1px solid var(--line);text-align:right;
 white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--muted);font-weight:600;border-bottom:2px solid var(--line)}
tr.model td{background:#eef4f8;font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}
.note{border-left:3px solid #edae49;padding:.2rem 0 .2rem .9rem;color:#52606d}
dl{display:grid;grid-template-columns:minmax(9rem,auto) 1fr;gap:.25rem 1.2rem;font-size:.88rem;
 margin:.4rem 0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,monospace}
footer{color:var(--muted);font-size:.82rem;margin-top:2rem}
@media print{body{background:#fff}section{break-inside:avoid}}
"""


@dataclass(kw_only=True)
class Page:
    """A page under construction: cards on top, then sections."""

    title: str
    lead: str = ""
    cards: list[tuple[str, str]] = field(default_factory=list)
    """(number, what it is)."""
    sections: list[tuple[str, list[str]]] = field(default_factory=list)

    def section(self, title: str) -> list[str]:
        """Return the parts of a new section, to be appended to."""
        parts: list[str] = []
        self.sections.append((title, parts))
        return parts

    def html(self) -> str:
        """Return the page."""
        cards = "".join(
            f'<div class="card"><b>{html.escape(n)}</b><span>{html.escape(what)}</span></div>'
            for n, what in self.cards
        )
        body = "".join(
            f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"
            for title, parts in self.sections
        )
        title = html.escape(self.title)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>"
            f'<p class="lead">{html.escape(self.lead)}</p>'
            f'<div class="cards">{cards}</div>{body}'
            "<footer>Made by DeepSentinel. Every number on this page was computed in the run that "
            "it describes.</footer></main></body></html>\n"
        )


def picture(figure: Figure, caption: str) -> str:
    """Return a figure embedded as HTML, its caption below and as alternative text."""
    data = base64.b64encode(pictures.png(figure)).decode()
    text = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def paragraph(text: str, *, note: bool = False) -> str:
    """Return a paragraph as HTML; a note is set apart."""
    return f"<p{' class=note' if note else ''}>{html.escape(text)}</p>"


def facts(rows: Mapping[str, Any]) -> str:
    """Return names and values as a list in HTML."""
    items = "".join(
        f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in rows.items()
    )
    return f"<dl>{items}</dl>"


def row(*blocks: str) -> str:
    """Return blocks side by side where there is room, as HTML."""
    return f'<div class="row">{"".join(f"<div>{b}</div>" for b in blocks)}</div>'
