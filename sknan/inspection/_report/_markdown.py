"""Conversion of the HTML of a report to Markdown, as in a README or a model card."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

# The elements that a report consists of.
_BLOCK = re.compile(
    r'<(h1|h2|p|summary|pre|table)\b[^>]*>(.*?)</\1>|<img alt="(.*?)"', re.S
)
_MARKS = {"h1": "# {}", "h2": "## {}", "summary": "**{}**"}

# Characters that Markdown would take for its own.
_SPECIAL = re.compile(r"[\\`*\[\]|]|(?<!\w)_|_(?!\w)")


def as_markdown(body: str) -> str:
    """Return the HTML of a report as Markdown, with a line for each figure."""
    return "\n\n".join(_blocks(body)) + "\n"


def _blocks(body: str) -> Iterator[str]:
    for tag, inside, title in _BLOCK.findall(body):
        if not tag:
            yield f"({_text(title)}: see the figure in the HTML page.)"
        elif tag == "table":
            yield "\n".join(_table(inside))
        elif tag == "pre":
            yield f"```text\n{html.unescape(inside)}\n```"
        elif text := _text(inside):
            yield _MARKS.get(tag, "{}").format(text)


def _table(inside: str) -> Iterator[str]:
    rows = re.findall(r"<tr>(.*?)</tr>", inside, re.S)
    for i, row in enumerate(rows):
        cells = [
            _text(c) for c in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.S)
        ]
        line = f"| {' | '.join(cells)} |"
        rule = f"|{' --- |' * len(cells)}"
        if i == 0 and "<td" in row:  # a table of Markdown needs heads
            yield from (f"|{'  |' * len(cells)}", rule, line)
        else:
            yield from (line, rule) if i == 0 else (line,)


def _text(inside: str) -> str:
    """Return the text of an element, in which no character has a meaning."""
    text = html.unescape(re.sub(r"<[^>]+>", "", inside))
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\g<0>", text)
