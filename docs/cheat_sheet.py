"""Draw the tables of ``cheat_sheet.md`` on one page, as SVG and PDF.

python docs/cheat_sheet.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.figure
import matplotlib.patches

HERE = Path(__file__).parent
COLORS = ("#0b5394", "#b2560d", "#38761d", "#741b47", "#444444")
LEFT = (0.16, 0.34, 0.55, 0.685)


def tables() -> dict[str, list[list[str]]]:
    """Return the rows of each table by its heading; the first row has the heads."""
    found: dict[str, list[list[str]]] = {}
    for line in (HERE / "cheat_sheet.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            rows = found[line.removeprefix("## ")] = []
        elif line.startswith("| ") and not line.startswith("| ---"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def draw() -> mpl.figure.Figure:
    """Return the page, A4 in landscape format."""
    figure = mpl.figure.Figure(figsize=(11.69, 8.27))
    groups = tables()
    height = 0.83 / sum(len(rows) - 0.5 for rows in groups.values())
    figure.text(0.03, 0.94, "sknan: the four causes of NaN", size=20, weight="bold")
    y = 0.9
    for left, head in zip(LEFT, next(iter(groups.values()))[0], strict=True):
        figure.text(left, y, head, size=9, color="0.35")
    for color, (name, (_, *rows)) in zip(COLORS, groups.items(), strict=True):
        y -= height / 2
        box = (0.03, y - len(rows) * height), 0.94, len(rows) * height
        figure.add_artist(mpl.patches.Rectangle(*box, fc=color, alpha=0.07, lw=0))
        center = y - len(rows) * height / 2
        style = {"size": 11, "weight": "bold", "color": color, "va": "center"}
        figure.text(0.04, center, name, **style)
        for row in rows:
            for left, cell in zip(LEFT, row, strict=True):
                is_call = left == LEFT[-1]
                figure.text(
                    left,
                    y - height / 2,
                    cell.replace("`", ""),
                    va="center",
                    size=7.3 if is_call else 9,
                    family="monospace" if is_call else "sans-serif",
                )
            y -= height
    where = (
        "Names are in sknan, or in sknan.functional, .activations, .losses, .diagnosis."
    )
    figure.text(0.03, 0.03, where, size=9, color="0.35")
    return figure


def write(folder: Path) -> None:
    """Write both files, with the same bytes each time."""
    figure = draw()
    with mpl.rc_context({"svg.hashsalt": "sknan", "pdf.fonttype": 42}):
        figure.savefig(folder / "cheat_sheet.svg", metadata={"Date": None})
        figure.savefig(folder / "cheat_sheet.pdf", metadata={"CreationDate": None})


if __name__ == "__main__":
    write(HERE / "_static")
