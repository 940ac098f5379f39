"""Elements and tables of HTML, with all text escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

_STYLE = "text-align:left; vertical-align:top; padding:1px 10px 1px 0"


def element(name: str, text: Any = "", css: str = "", style: str = "") -> str:
    """Return an element with text, which is escaped."""
    kind = f' class="{css}"' if css else ""
    kind += f' style="{style}"' if style else ""
    return f"<{name}{kind}>{html.escape(str(text))}</{name}>"


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str] = ()) -> str:
    """Return a table of text. Without heads, the first cell of a row is its head."""
    if not rows:
        return ""
    lines = []
    if heads:
        lines.append("".join(element("th", name, style=_STYLE) for name in heads))
    for first, *others in rows:
        cells = [element("td" if heads else "th", first, style=_STYLE)]
        cells += [element("td", cell, style=_STYLE) for cell in others]
        lines.append("".join(cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div style="overflow-x:auto"><table>{body}</table></div>'
