"""Every block of code in the README and the guide runs, and says what it says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    """Blocks of a page, each below as many empty lines as come before it there."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return ["\n" * text.count("\n", 0, m.start(1)) + m.group(1) for m in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page):
    # A rescue warns by design, and the pages provoke some.
    from sknan import DivergenceWarning

    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), namespace)


def test_the_refusal_in_the_readme_is_what_is_printed(capsys):
    page = ROOT / "README.md"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(blocks(page, "python")[0], str(page), "exec"), {})
    assert capsys.readouterr().out.startswith(blocks(page, "text")[0].lstrip())


def test_the_report_in_the_readme_is_what_is_printed(capsys):
    page = ROOT / "README.md"
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks(page, "python")[:2]:
            exec(compile(block, str(page), "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()[-1]
    # The line is counted in the page here, and in a script of one's own there.
    somewhere = re.compile(r"\(\S+:\d+\)")
    shown = blocks(page, "text")[1].strip()
    assert somewhere.sub("", printed) == somewhere.sub("", shown)


def test_the_audit_in_the_guide_is_what_is_printed(capsys):
    page = ROOT / "docs" / "user_guide.md"
    (block,) = [code for code in blocks(page, "python") if "print(found)" in code]
    exec(compile("import numpy as np\n" + block, str(page), "exec"), {})
    assert capsys.readouterr().out.strip() == blocks(page, "text")[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link
