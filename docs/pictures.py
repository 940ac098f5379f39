"""Make the pictures of the documentation anew, into ``_static``.

python docs/pictures.py

It runs the demo, the example of the four causes, the blocks of the tour, and the cheat
sheet. The picture of the report needs Chromium; without it, the old one is kept.
"""

from __future__ import annotations

import contextlib
import re
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path

import cheat_sheet

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"


def screenshot(page: Path, picture: Path, size: str = "1000,760") -> None:
    """Write the picture of a page, as Chromium shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"Chromium is missing: {picture.name} is the old one.")
        return
    options = ["--headless", "--no-sandbox", "--hide-scrollbars"]
    target = [f"--window-size={size}", f"--screenshot={picture}", page.as_uri()]
    subprocess.run([browser, *options, *target], check=True, capture_output=True)


def write(folder: Path) -> None:
    """Write all pictures; the examples write theirs to ``outputs`` first."""
    for example, drawn, name in [
        ("01_quickstart", "quickstart", "quickstart"),
        ("08_four_causes_of_nan", "08_four_causes_of_nan", "four_causes"),
    ]:
        runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
        shutil.copy(Path("outputs") / f"{drawn}.png", folder / f"{name}.png")
    names: dict[str, Path] = {}
    tour = (HERE / "tour.md").read_text("utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", tour, re.M | re.S):
        exec(code, names)
    shutil.copy(names["folder"] / "training.png", folder / "tour_training.png")
    screenshot(names["folder"] / "report.html", folder / "tour_report.png")
    cheat_sheet.write(folder)


if __name__ == "__main__":
    with contextlib.chdir(tempfile.mkdtemp()):
        write(HERE / "_static")
