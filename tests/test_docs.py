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


def examples(page):
    """Return the code blocks of a page as (language, code, shown output).

    The code is padded to keep the line numbers of the page. A block of text that
    directly follows a block of Python is its output.
    """
    text = page.read_text(encoding="utf-8")
    found = re.finditer(
        r"^```([^\n]*)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text, re.M | re.S
    )
    return [(m[1], "\n" * text.count("\n", 0, m.start(2)) + m[2], m[3]) for m in found]


def blocks(page, language):
    """Return the code blocks of a page in one language."""
    return [code for name, code, _ in examples(page) if name == language]


def run(code, page, namespace):
    exec(compile(code, str(page), "exec"), namespace)


DECIMAL = re.compile(r"(-?\d+\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+)")
# File and line are those of the page in this test, and of a script for its reader.
PLACE = re.compile(r"\(\S+:\d+\)")


def assert_shown(printed, shown):
    """Compare words and whole numbers exactly, and decimals within a tenth.

    The decimals of a training differ a little between processors, and those of one that
    diverges, in e-notation, in all digits.
    """
    found, expected = (
        DECIMAL.split(" ".join(PLACE.sub("", text).split()))
        for text in (printed, shown)
    )
    assert found[::2] == expected[::2]
    for ours, theirs in zip(found[1::2], expected[1::2], strict=True):
        if "e" not in ours + theirs:
            assert float(ours) == pytest.approx(float(theirs), rel=0.1, abs=0.02)


def test_the_front_page_shows_the_first_example_of_the_readme():
    code, shown = examples(ROOT / "README.md")[1][1:]
    ((_, same_code, same_output),) = (
        example for example in examples(DOCS / "index.md") if example[0] == "python"
    )
    assert same_code.strip() == code.strip()
    assert same_output == shown


PAGES_WITH_CODE = [
    page for page in PAGES if blocks(page, "python") and page != DOCS / "index.md"
]


@parametrize_pages(PAGES_WITH_CODE)
def test_the_code_of_a_page_runs_and_prints_what_is_shown(page, capsys):
    """The blocks of the README run alone, and those of a page from top to bottom."""
    namespace = {}
    with warnings.catch_warnings():
        # Some blocks show how training recovers, which raises this warning.
        warnings.simplefilter("ignore", sknan.DivergenceWarning)
        for language, code, shown in examples(page):
            if language != "python":
                continue
            run(code, page, {} if page.name == "README.md" else namespace)
            printed = capsys.readouterr().out
            if shown is not None:
                assert_shown(printed, shown)


@pytest.mark.parametrize(
    ("shown", "is_equal"),
    [
        ("row 3 of  'age'\n(page.py:2) 0.52 1.1e+30", True),
        ("row 4 of 'age' (page.py:2) 0.52 1.1e+30", False),
        ("row 3 of 'sex' (page.py:2) 0.52 1.1e+30", False),
        ("row 3 of 'age' (page.py:2) 0.62 1.1e+30", False),
        ("row 3 of 'age' (page.py:2) 0.52", False),
    ],
)
def test_shown_output_is_compared_by_words_and_numbers(shown, is_equal):
    printed = "row 3 of 'age' (script.py:17) 0.51 2.7e+30\n"
    if is_equal:
        assert_shown(printed, shown)
    else:
        with pytest.raises(AssertionError):
            assert_shown(printed, shown)


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
        max_epochs=12,
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
    assert len(income.guard.reports) == 12
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
    """Return the relative links and images of a page, outside its code blocks.

    Those of a workflow's badge are relative to the page on GitHub.
    """
    text = re.sub(r"^```(?!\{).*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not link.startswith(("http", "../../actions/"))
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
        for tree in blocks(page, "{toctree}"):
            folder = page.parent.relative_to(DOCS)
            listed |= {
                str(folder / line.strip("<>"))
                for line in tree.split()
                if not line.startswith(":")
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


def test_the_index_of_the_reference_has_every_name_with_its_summary(reference):
    index = reference.index_page()
    for module in reference.public_modules():
        imported = importlib.import_module(f"sknan.{module}")
        for name in imported.__all__:
            thing = getattr(imported, name)
            link = f":py:obj:`{name} <{reference.address(module, name)}>`"
            summary = reference.summary_of(thing) if callable(thing) else ""
            assert f"   * - {link}\n     - {summary}" in index


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


# -- cheat sheet ---------------------------------------------------------------------


def test_the_calls_of_the_cheat_sheet_exist():
    places = [sknan, *map(importlib.import_module, ("sknan.diagnosis",))]
    parameters = set(sknan.StableNetClassifier().get_params())
    page = (DOCS / "cheat_sheet.md").read_text(encoding="utf-8")
    calls = [call for line in page.splitlines() for call in re.findall("`(.*?)`", line)]
    assert len(calls) > 20
    for call in calls:
        module, _, name = re.match(r"(?:(\w+)(\.))?(\w+)", call).groups()
        if module in ("functional", "activations", "losses"):
            assert hasattr(importlib.import_module(f"sknan.{module}"), name)
        elif "=" in call.split("(")[0]:
            assert name in parameters
        elif module is None and name != "n_recoveries":
            assert any(hasattr(place, name) for place in places), name


def test_the_cheat_sheet_is_one_page_with_all_its_rows(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "cheat_sheet", DOCS / "cheat_sheet.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    assert (tmp_path / "cheat_sheet.svg").stat().st_size > 10_000
    assert b"/Count 1" in (tmp_path / "cheat_sheet.pdf").read_bytes()
    shown = {text.get_text() for text in module.draw().texts}
    for rows in module.tables().values():
        assert {cell.replace("`", "") for cell in rows[-1]} <= shown


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
