"""Parts of the page of a report: elements, tables, pictures and their style.

Nothing is fetched: style and pictures stand in the page, and all text is escaped.
"""

from __future__ import annotations

import html
import importlib.util
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sknan.inspection._plotting import INK, pyplot

__all__ = [
    "STYLE",
    "cut_table",
    "details",
    "drawn",
    "element",
    "page",
    "picture",
    "section",
    "table",
]

# Rows of a table that are shown at once.
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
.sknan-report h2 { font-size: 18px; margin: 32px 0 8px; padding-bottom: 4px;
  border-bottom: 1px solid var(--line); }
.sknan-report p { margin: 8px 0; }
.sknan-report .quiet { color: var(--quiet); }
.sknan-report .wide { overflow-x: auto; }
.sknan-report table { border-collapse: collapse; font-size: 13px; margin: 8px 0;
  background: transparent; color: inherit; }
.sknan-report th, .sknan-report td { text-align: left; vertical-align: top;
  padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); min-width: 3em;
  background: transparent; color: inherit; overflow-wrap: break-word; }
.sknan-report svg { display: block; width: 100%; height: auto; max-width: 700px; }
.sknan-report pre { background: var(--soft); border-left: 3px solid var(--bad);
  padding: 8px 10px; margin: 8px 0; white-space: pre-wrap; font-size: 13px;
  color: inherit; }
.sknan-report .incident { border: 1px solid var(--line); border-radius: 6px;
  padding: 4px 12px; margin: 12px 0; }
.sknan-report .incident b.what { color: var(--bad); }
.sknan-report summary { cursor: pointer; }
@media (max-width: 600px) { .sknan-report { padding: 10px; }
  .sknan-report th, .sknan-report td { padding-right: 8px; } }
"""


def element(name: str, text: Any = "", css: str = "") -> str:
    """An element around text, which is escaped."""
    kind = f' class="{css}"' if css else ""
    return f"<{name}{kind}>{html.escape(str(text))}</{name}>"


def section(title: str, parts: Iterable[str]) -> str:
    """A section of ready parts."""
    return f"<section>{element('h2', title)}{''.join(parts)}</section>"


def details(title: str, inside: str) -> str:
    """What is shown on a click."""
    return f"<details>{element('summary', title)}{inside}</details>"


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str] = ()) -> str:
    """A table of text; without heads, the first of each row is its name."""
    if not rows:
        return ""
    head = "".join(element("th", name) for name in heads)
    lines = [f"<tr>{head}</tr>"] if heads else []
    for first, *others in rows:
        cells = element("td" if heads else "th", first)
        cells += "".join(element("td", cell) for cell in others)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def picture(figure: Any, title: str) -> str:
    """A figure as SVG in the colours of the page; closes it.

    Parameters
    ----------
    figure : matplotlib Figure
    title : str
        What it shows, for who does not see it.
    """
    plt = pyplot("report")
    text = io.StringIO()
    for ax in figure.axes:
        _ink(ax)
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True)
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = _renamed(svg, title)
    svg = svg.replace(INK, "currentColor")
    label = html.escape(title, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _renamed(svg: str, title: str) -> str:
    """Names that no other figure of the page has, and the same ones each time."""
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    prefix = re.sub(r"\W+", "-", title.lower())
    new = {old: f"{prefix}-{number}" for number, old in enumerate(used)}

    def name(found: re.Match[str]) -> str:
        return f' id="{new[found[1]]}"' if found[1] in new else ""

    svg = re.sub(r'\sid="([^"]*)"', name, svg)
    return re.sub(
        r'(href="#|url\(#)([^")]+)', lambda found: found[1] + new[found[2]], svg
    )


def _ink(ax: Any) -> None:
    """Frame, ticks and labels in the ink that becomes the colour of the page's text."""
    ax.tick_params(which="both", color=INK, labelcolor=INK)
    for spine in ax.spines.values():
        spine.set_edgecolor(INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_color(INK)
        axis.get_offset_text().set_color(INK)
    ax.title.set_color(INK)
    legend = ax.get_legend()
    if legend is not None:
        for text in legend.get_texts():
            text.set_color(INK)


def page(title: str, body: str) -> str:
    """A whole document around the body."""
    # The page around the report is of its colour too.
    around = (
        "html { color-scheme: light dark; background: #ffffff; } body { margin: 0; } "
        "@media (prefers-color-scheme: dark) { html { background: #15191e; } }"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{around}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def drawn(draw: Any, title: str) -> str:
    """A picture, or what it takes to see it."""
    if importlib.util.find_spec("matplotlib") is None:
        words = "Install matplotlib to see a picture here: pip install 'sknan[plot]'."
        return element("p", words, "quiet")
    from matplotlib.figure import Figure

    figure = draw().figure_
    assert isinstance(figure, Figure)
    return picture(figure, title)


def cut_table(rows: list[Any], heads: Sequence[str] = ()) -> str:
    """A table whose rest is shown on a click."""
    first, others = rows[:_N_ROWS], rows[_N_ROWS:]
    rest = details(f"{len(others)} more", table(others, heads)) if others else ""
    return table(first, heads) + rest
