"""README and documentation: code blocks, printed output, links, and API reference.

``test_house.py`` compares documented parameters and defaults with the signatures.
``make docs`` fails at any warning of Sphinx.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path

import pytest

import sknan

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Folders that Sphinx writes into docs/.
GENERATED = {"_build", "gallery", "api"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        path
        for path in DOCS.rglob("*.md")
        if GENERATED.isdisjoint(path.relative_to(DOCS).parts)
    ),
]


def label(page):
    return str(page.relative_to(ROOT))


def parametrize_pages(pages):
    return pytest.mark.parametrize("page", pages, ids=label)


def blocks(page, language):
    """Return the code blocks of a page, padded to keep the line numbers of the page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return ["\n" * text.count("\n", 0, m.start(1)) + m.group(1) for m in found]


def run(code, page, namespace):
    exec(compile(code, str(page), "exec"), namespace)


@parametrize_pages([page for page in PAGES if blocks(page, "python")])
def test_the_code_of_a_page_runs_from_top_to_bottom(page):
    namespace = {}
    with warnings.catch_warnings():
        # Some blocks show how training recovers, which raises this warning.
        warnings.simplefilter("ignore", sknan.DivergenceWarning)
        for block in blocks(page, "python"):
            run(block, page, namespace)


# -- printed output ------------------------------------------------------------------


@parametrize_pages([ROOT / "README.md", DOCS / "index.md"])
def test_the_shown_error_message_is_printed(page, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(blocks(page, "python")[0], page, {})
    assert capsys.readouterr().out.startswith(blocks(page, "text")[0].strip())


def test_the_report_shown_in_the_readme_is_printed(capsys):
    page = ROOT / "README.md"
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks(page, "python")[:2]:
            run(block, page, namespace)
    printed = capsys.readouterr().out.splitlines()[-1]
    # File and line number are those of this page here, and of a user's script there.
    location = re.compile(r"\(\S+:\d+\)")
    shown = blocks(page, "text")[1].strip()
    assert location.sub("", printed) == location.sub("", shown)


def test_the_audit_shown_in_the_guide_is_printed(capsys):
    page = DOCS / "guide" / "preparing.md"
    (block,) = [code for code in blocks(page, "python") if "print(found)" in code]
    run("import numpy as np\n" + block, page, {})
    assert capsys.readouterr().out.strip() == blocks(page, "text")[0].strip()


def test_the_guard_of_the_guide_works_in_lightning(tmp_path):
    lightning = pytest.importorskip(
        "lightning", reason="the package lightning is missing"
    )
    page = DOCS / "guide" / "moving.md"
    stand_in = "from torch.nn import Module as LightningModule"
    namespace = {}
    for block in blocks(page, "python"):
        if "income.configure_optimizers()" in block:
            break  # from here, the page replaces the trainer by a loop
        block = block.replace(stand_in, "from lightning import LightningModule")
        run(block, page, namespace)
    income = namespace["income"]
    assert isinstance(income, lightning.LightningModule)
    trainer = lightning.Trainer(
        max_epochs=5,
        gradient_clip_val=1.0,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of lightning on data loader workers
        trainer.fit(income, namespace["loader"])
    assert len(income.guard.reports) == 5
    assert {report.operation for report in income.guard.reports} == {"aten.log"}
    assert all(p.isfinite().all() for p in income.parameters())


# -- links ---------------------------------------------------------------------------


def anchors(page):
    """Return the anchors of the headings of a page, as GitHub and MyST form them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in headings
    }


def links(page):
    """Return the relative links and images of a page, outside its code blocks."""
    text = re.sub(r"^```(?!\{).*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not link.startswith("http")
    ]


def is_generated(path):
    """Whether Sphinx writes this page for a public module or an example."""
    folder, name = path.parent.name, path.name.removesuffix(".rst")
    if folder == "api":
        return name == "index" or importlib.util.find_spec(f"sknan.{name}") is not None
    return folder == "gallery" and (
        name == "index" or (ROOT / "examples" / f"{name}.py").exists()
    )


@parametrize_pages(PAGES)
def test_links_between_pages_are_not_broken(page):
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        exists = path.exists() or is_generated(path)
        if not exists or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_a_table_of_contents():
    listed = {"index"}
    for page in PAGES:
        for tree in blocks(page, r"\{toctree\}"):
            folder = page.parent.relative_to(DOCS)
            listed |= {
                str(folder / line) for line in tree.split() if not line.startswith(":")
            }
    pages = {
        str(page.relative_to(DOCS).with_suffix(""))
        for page in PAGES
        if page.is_relative_to(DOCS)
    }
    assert pages <= listed


# -- reference -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """Import the generator of the reference, which does not need Sphinx."""
    spec = importlib.util.spec_from_file_location(
        "api_reference", DOCS / "api_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference(reference, tmp_path):
    reference.write_api_reference(tmp_path)
    written = "\n".join(path.read_text() for path in tmp_path.glob("*.rst"))
    shown = {
        f"{place}.{name}"
        for place, names in re.findall(
            r"^\.\. currentmodule:: (\S+)\n\n(\.\. [^\n]+)", written, re.M
        )
        for name in re.findall(r":: (\S+)", names)
    }
    for module in reference.public_modules():
        for name in importlib.import_module(f"sknan.{module}").__all__:
            assert reference.address(module, name) in shown
    assert {f"sknan.{name}" for name in sknan.__all__} <= shown


def test_an_obsolete_page_of_the_reference_is_deleted(reference, tmp_path):
    (tmp_path / "gone.rst").write_text("gone")
    reference.write_api_reference(tmp_path)
    assert not (tmp_path / "gone.rst").exists()
    assert (tmp_path / "index.rst").exists()


def test_every_module_is_in_one_group_of_the_reference(reference):
    grouped = [name for names in reference.grouped_modules().values() for name in names]
    assert sorted(grouped) == reference.public_modules()


def test_the_section_shape_moves_to_the_notes(reference):
    lines = ["Sum.", "", "Shape", "-----", "(n, *) to", "(n,).", "", "Examples", "---"]
    reference.shape_into_notes(None, "class", "Sum", None, None, lines)
    assert "\n".join(lines) == (
        "Sum.\n\n\nNotes\n-----\n*Shape:* (n, \\*) to (n,).\n\nExamples\n---"
    )

    lines = ["Sum.", "", "Shape", "-----", "(n,).", "", "Notes", "-----", "Slow."]
    reference.shape_into_notes(None, "class", "Sum", None, None, lines)
    assert "\n".join(lines) == "Sum.\n\nNotes\n-----\n*Shape:* (n,).\n\nSlow."


# -- paths ---------------------------------------------------------------------------


def test_the_paths_and_names_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    paths = set(re.findall(r"`((?:sknan|tests|docs|examples|benchmarks)/[^`]*)`", text))
    assert len(paths) > 20
    paths.discard("docs/_build/html")  # made by the build
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    sources = "".join(p.read_text("utf-8") for p in (ROOT / "sknan").rglob("*.py"))
    for name in ("SCHEDULES", "_RULES", "RECOVERIES", "DETECTORS", "LossTraits"):
        assert f"`{name}`" in text
        assert name in sources
    for name in re.findall(r"`(_\w+\.py)`", text):
        assert list((ROOT / "sknan").rglob(name)), name
