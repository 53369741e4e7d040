"""The report page's HTML: every text is escaped here, every image becomes a data URL, nothing is fetched and nothing
is run.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

STYLE = Path(__file__).with_name("report.css").read_text()
# The browser itself then refuses scripts, and anything from elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, heading: str, sections: Sequence[str]) -> str:
    """The whole document. heading and sections are HTML, title is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n<header>{heading}</header>\n<main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def section(title: str, note: str, *content: str) -> str:
    """A section with its heading and a line that says how to read it (texts), then HTML."""
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{"".join(content)}</section>'


def tiles(items: Sequence[tuple[str, str, str, str]]) -> str:
    """Headline figures: (name, figure, unit, what it means), the first one set off."""
    cells = []
    for index, (name, figure, unit, hint) in enumerate(items):
        unit_html = f" <small>{escape(unit)}</small>" if unit else ""
        cells.append(
            f'<li{" class=lead" if index == 0 else ""}><span class="name">{escape(name)}</span>'
            f'<b>{escape(figure)}{unit_html}</b><span class="hint">{escape(hint)}</span></li>'
        )
    return f'<ul class="tiles">{"".join(cells)}</ul>'


def scene_table(columns: Mapping[str, str], rows: Sequence[Mapping], max_side: int) -> str:
    """Rows {'title', 'images': {name: H x W x 3}} as a grid; columns: name -> label."""
    width = f"grid-template-columns: repeat({len(columns)}, minmax(104px, 1fr)); max-width: {len(columns) * 230}px"
    cells = [f'<div class="head">{escape(label)}</div>' for label in columns.values()]
    for row in rows:
        if row.get("title"):
            cells.append(f'<div class="title">{escape(str(row["title"]))}</div>')
        for name, label in columns.items():
            image = row["images"].get(name)
            cells.append(picture(image, f"{label}, {row.get('title', '')}", max_side) if image is not None else "<div>\N{EN DASH}</div>")
    return f'<div class="scroll"><div class="scenes" style="{width}">{"".join(cells)}</div></div>'


def pair_card(images: Sequence[tuple[str, np.ndarray]], caption: str, scores: str, why: str, max_side: int) -> str:
    """One pair: its pictures side by side, the caption, the scores and, of a rejected one, the reason."""
    pictures = "".join(picture(image, label, max_side) for label, image in images)
    reason = f'<div class="why">{escape(why)}</div>' if why else ""
    return (
        f'<figure class="pair"><div class="two">{pictures}</div><figcaption>{escape(caption)}'
        f'<div class="scores">{escape(scores)}</div>{reason}</figcaption></figure>'
    )


def gallery(kind: str, cards: Sequence[str], visible: int) -> str:
    """'pairs' or 'charts' in a grid; those beyond the first `visible` behind a line to open."""
    first, rest = "".join(cards[:visible]), cards[visible:]
    more = f'<details><summary>Show {len(rest)} more</summary><div class="{kind}">{"".join(rest)}</div></details>' if rest else ""
    return f'<div class="{kind}">{first}</div>{more}'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; the first column is left-aligned."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(image: np.ndarray, label: str, max_side: int) -> str:
    """An <img> with the RGB uint8 H x W x 3 image in it as PNG, scaled down to at most max_side pixels a side."""
    pillow = Image.fromarray(image)
    pillow.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    pillow.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{escape(label)}" title="{escape(label)}" src="data:image/png;base64,{data}">'
