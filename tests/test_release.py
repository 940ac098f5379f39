"""Files of a release: versions, requirements and Python versions agree."""

from __future__ import annotations

import re
import runpy
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def read(path):
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


@pytest.mark.parametrize(
    "found",
    [
        lambda: read("CITATION.cff")["version"],
        lambda: read("conda/recipe.yaml")["context"]["version"],
        lambda: version("sknan"),
    ],
    ids=["citation", "conda", "installed"],
)
def test_the_version_is_that_of_the_project(found):
    assert str(found()) == PROJECT["version"]


def test_the_conda_recipe_requires_what_the_project_requires():
    recipe = read("conda/recipe.yaml")["requirements"]["run"]
    expected = [f"python {PROJECT['requires-python']}"]
    for requirement in PROJECT["dependencies"]:
        name, bound = re.fullmatch(r"([\w-]+)(>=.+)", requirement).groups()
        expected.append(f"{'pytorch' if name == 'torch' else name} {bound}")
    assert sorted(recipe) == sorted(expected)


def test_the_workflow_tests_every_declared_python():
    tested = read(".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]
    prefix = "Programming Language :: Python :: "
    declared = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if prefix in c]
    assert tested["matrix"]["python"] == declared


def test_the_page_of_supported_versions_has_the_lower_bounds():
    page = (ROOT / "docs/support.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([\w, -]+?) \| ([\d., ]+)", page, re.MULTILINE))
    stated = {}
    for names, bounds in rows.items():
        stated |= dict(
            zip(names.split(", "), bounds.strip(" ,").split(", "), strict=True)
        )
    bounds = (one.partition(",")[0].split(">=") for one in PROJECT["dependencies"])
    expected = dict(bounds)
    expected["Python"] = PROJECT["requires-python"].removeprefix(">=")
    assert stated == expected


def test_links_of_the_readme_become_absolute():
    rewrite = runpy.run_path(str(ROOT / ".github/absolute_links.py"))
    text = (
        "![plot](docs/p.png) [guide](docs/g.md#a) [web](https://a.org) [here](#b) "
        "[![tests](../../actions/t.yml/badge.svg)](../../actions/t.yml)"
    )
    assert rewrite["with_absolute_links"](text, "https://host/o/r", "v1") == (
        "![plot](https://host/o/r/raw/v1/docs/p.png) "
        "[guide](https://host/o/r/blob/v1/docs/g.md#a) [web](https://a.org) [here](#b) "
        "[![tests](https://host/o/r/actions/t.yml/badge.svg)]"
        "(https://host/o/r/actions/t.yml)"
    )
