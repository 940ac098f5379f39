"""HTML elements, tables, figures and style of a report.

The page includes its style and figures and loads nothing. All text is escaped.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sknan._utils.html import element, table
from sknan.inspection._plotting import pyplot

# Number of rows that a table shows before it is expanded.
_N_ROWS = 20

STYLE = """
.sknan-report { --text: #1b1f24; --page: #ffffff; --line: #d5dae0; --soft: #f4f6f8;
  --quiet: #57606a; --bad: #b3400a; color: var(--text); background: var(--page);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  max-width: 860px; margin: 0 auto; padding: 16px; box-sizing: border-box;
  overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  .sknan-report { --text: #e6e9ec; --page: #15191e; --line: #39414a; --soft: #1f252c;
    --quiet: #a3adb8; --bad: #ff9a5c; } }
.sknan-report h1 { font-size: 24px; line-height: 1.25; margin: 8px 0; }
@media (max-width: 600px) { .sknan-report h1 { font-size: 20px; } }
.sknan-report h2 { font-size: 18px; margin: 32px 0 8px; padding-bottom: 4px;
  border-bottom: 1px solid var(--line); }
.sknan-report p { margin: 8px 0; }
.sknan-report .quiet { color: var(--quiet); }
.sknan-report table { border-collapse: collapse; font-size: 13px; margin: 8px 0;
  background: transparent; color: inherit; }
.sknan-report th, .sknan-report td { border-bottom: 1px solid var(--line);
  min-width: 3em; background: transparent; color: inherit; overflow-wrap: break-word; }
.sknan-report img { display: block; width: 100%; max-width: 700px; }
@media (prefers-color-scheme: dark) {
  .sknan-report img { filter: invert(1) hue-rotate(180deg); } }
.sknan-report pre { background: var(--soft); border-left: 3px solid var(--bad);
  padding: 8px 10px; margin: 8px 0; white-space: pre-wrap; font-size: 13px;
  color: inherit; }
.sknan-report .incident { border: 1px solid var(--line); border-radius: 6px;
  padding: 4px 12px; margin: 12px 0; }
.sknan-report .incident b.what { color: var(--bad); }
.sknan-report summary { cursor: pointer; }
"""


def section(title: str, parts: Iterable[str]) -> str:
    """Return a section with a heading and parts in HTML."""
    return f"<section>{element('h2', title)}{''.join(parts)}</section>"


def details(title: str, inside: str) -> str:
    """Return HTML that is shown after a click on its title."""
    return f"<details>{element('summary', title)}{inside}</details>"


def _picture(figure: Any, title: str) -> str:
    """Return a matplotlib figure as an SVG image inside the page, and close it."""
    plt = pyplot("report")
    svg = io.BytesIO()
    # The layout of equal figures differs by rounding, which would change ids.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(place, 6) for place in axes.get_position().bounds])
    # Without date and with fixed ids, equal figures give equal pages.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sknan"}):
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    data = base64.b64encode(svg.getvalue()).decode()
    label = html.escape(title, quote=True)
    return f'<img alt="{label}" src="data:image/svg+xml;base64,{data}">'


def page(title: str, body: str) -> str:
    """Return a complete document with a body."""
    # The margins of the page have the background color of the report.
    style = (
        "html { color-scheme: light dark; background: #ffffff; } body { margin: 0; } "
        "@media (prefers-color-scheme: dark) { html { background: #15191e; } }"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def drawn(title: str, draw: Callable[[Any], Any], shown: Any) -> str:
    """Return the figure of a display, or a hint to install matplotlib.

    The title describes the figure for screen readers.
    """
    if importlib.util.find_spec("matplotlib") is None:
        text = "Install matplotlib to see a figure here: pip install 'sknan[plot]'."
        return element("p", text, "quiet")
    return _picture(draw(shown).figure_, title)


def cut_table(rows: list[Any], heads: Sequence[str] = ()) -> str:
    """Return a table whose last rows are shown after a click."""
    first, others = rows[:_N_ROWS], rows[_N_ROWS:]
    rest = details(f"{len(others)} more", table(others, heads)) if others else ""
    return table(first, heads) + rest


def value_text(value: Any) -> str:
    """Return a value as text: floats with six digits, masked values as a dash."""
    if value is np.ma.masked:
        return "-"
    is_float = isinstance(value, (float, np.floating))
    return f"{value:.6g}" if is_float else str(value)
