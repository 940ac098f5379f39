"""Example scripts: structure of all, and execution of the fast ones.

SLOW lists the scripts that take more than about five seconds. Only ``make docs`` runs
them, and it stops at the first failure.
"""

from __future__ import annotations

import ast
import re
import runpy
import warnings
from pathlib import Path

import pytest

import sknan

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))

SLOW = {
    "01_quickstart",
    "02_optuna_prunes_what_diverges",
    "03_messy_table_end_to_end",
    "04_what_each_preparation_step_is_worth",
    "05_calibrated_probabilities",
    "06_what_a_training_looks_like",
    "07_finding_the_learning_rate",
    "09_a_whole_grid_as_one_network",
    "12_labels_and_quantiles",
    "11_what_predictions_depend_on",
}


def parametrize_paths(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def test_the_examples_are_numbered_in_reading_order():
    numbers = [path.name[:2] for path in EXAMPLES]
    assert all(re.fullmatch(r"\d\d", number) for number in numbers)
    assert len(set(numbers)) == len(numbers)


@parametrize_paths(EXAMPLES)
def test_an_example_has_a_title_an_introduction_and_cells(path):
    text = path.read_text(encoding="utf-8")
    title, rule, *rest = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert re.fullmatch("=+", rule)
    assert len(rule) == len(title)
    assert any(rest)
    assert text.count("\n# %%\n") >= 3


@parametrize_paths(EXAMPLES)
def test_an_example_ends_with_a_plot_or_a_printed_table(path):
    last_cell = path.read_text(encoding="utf-8").rsplit("# %%", 1)[1]
    assert re.search(r"\.savefig\(|print\(", last_cell)


@parametrize_paths([path for path in EXAMPLES if path.stem not in SLOW])
def test_an_example_runs(path, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)  # the script writes its plot there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sknan.DivergenceWarning)
        runpy.run_path(str(path), run_name="__main__")
    plt.close("all")
