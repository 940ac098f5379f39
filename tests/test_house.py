"""How the package is built: floors, imports, public names, documented defaults."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skorch
import torch

import sknan

PACKAGE = Path(sknan.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
PUBLIC_MODULES = [name for name in MODULES if not name.startswith("_")]

# Floors of DESIGN.md; a private module lives where those stand that it serves.
FLOOR = {
    "exceptions": 0,
    "_archive": 0,
    "_caller": 0,
    "_compiled": 0,
    "_random_state": 0,
    "_tree": 0,
    "_checks": 0,
    "_blocks": 0,
    "_columns": 0,
    "_selection": 0,
    "_soft_bound": 0,
    "_streaming": 0,
    "_edges": 0,
    "_pickling": 0,
    "functional": 0,
    "clipping": 0,
    "adaptive_clipping": 0,
    "schedules": 0,
    "batching": 0,
    "_fit_task": 0,
    "_fused_step": 0,
    "_hold_out": 0,
    "_progress": 0,
    "_threads": 0,
    "activations": 1,
    "_loss_base": 1,
    "_class_losses": 1,
    "_value_losses": 1,
    "losses": 1,
    "modules": 1,
    "imputation": 1,
    "scaling": 1,
    "audit": 1,
    "_column_facts": 1,
    "_column_findings": 1,
    "_column_reader": 1,
    "_finding": 1,
    "_number_findings": 1,
    "_number_sentinels": 1,
    "_remedies": 1,
    "_sentinels": 1,
    "_table_findings": 1,
    "_table_reader": 1,
    "_target_findings": 1,
    "_text_findings": 1,
    "_blame": 1,
    "_capsule": 1,
    "_conditioning": 1,
    "_layerwise": 1,
    "_repair": 1,
    "_replay": 1,
    "_rates": 1,
    "_loss_watch": 1,
    "_report": 1,
    "_verdict": 1,
    "diagnosis": 1,
    "snapshots": 1,
    "guard": 2,
    "early_stopping": 3,
    "_skorch_data": 3,
    "_mending": 3,
    "_backup_state": 3,
    "backup": 3,
    "_training": 3,
    "_guard_mixin": 3,
    "nets": 3,
    "stacking": 4,
    "_table_net": 4,
    "_training_plan": 4,
    "_stack": 4,
    "_stack_ledger": 4,
    "_stack_slice": 4,
    "_stacked_step": 4,
    "_stacked_pass": 4,
    "_stacked_chain": 4,
    "_stacked_losses": 4,
    "_stack_weights": 4,
    "_net_parts": 4,
    "_rate_curves": 4,
    "_range_test": 4,
    "_rate_verdict": 4,
    "_prefixed_params": 4,
    "_epoch_tasks": 4,
    "_estimator_base": 4,
    "_classifier": 4,
    "_regressor": 4,
    "_training_curves": 4,
    "_training_summary": 4,
    "estimators": 4,
    "ensemble": 5,
    "pipelines": 5,
    "_table_steps": 5,
    "_learnt_columns": 5,
    "learning_rate": 5,
    "search": 5,
    "_batched_search": 5,
    "_search_pipelines": 5,
    "_search_preparation": 5,
    "_search_results": 5,
    "_search_run": 5,
    "_search_share": 5,
    "_plotting": 5,
    "_training_display": 5,
    "_rate_display": 5,
    "_rate_fates": 5,
    "_audit_display": 5,
    "display": 5,
    "_report_page": 5,
    "_report_sections": 5,
    "html_report": 5,
    "_refusals": 5,
    "_faults": 5,
    "_finite_state": 5,
    "_finite_outputs": 5,
    "_finite_score": 5,
    "_finite_contract": 5,
    "_table_checks": 5,
    "_training_checks": 5,
    "_finite_checks": 5,
    "testing": 5,
}

# Imported where they are used: they may be absent, or take long (skrub).
LATE_PACKAGES = {"matplotlib", "polars", "pandas", "pytest", "skrub"}

PUBLIC_NAMES = [
    "AuditDisplay",
    "BackupAndRestore",
    "BatchedGridSearchCV",
    "BatchedHalvingSearchCV",
    "BatchedRandomizedSearchCV",
    "DivergenceWarning",
    "GuardMixin",
    "GuardedNet",
    "GuardedNetBinaryClassifier",
    "GuardedNetClassifier",
    "GuardedNetRegressor",
    "LearningRateDisplay",
    "LearningRateRange",
    "NaNImputer",
    "NonFiniteDataError",
    "NonFiniteReport",
    "NonFiniteTrainingError",
    "SafeScaler",
    "SknanError",
    "StableNetClassifier",
    "StableNetEnsembleClassifier",
    "StableNetEnsembleRegressor",
    "StableNetRegressor",
    "TabularMLP",
    "TrainingDisplay",
    "audit",
    "find_learning_rate",
    "report",
    "tabular_pipeline",
]


# -- imports -------------------------------------------------------------------------


def tree_of(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imported_names(node):
    """Dotted names that an import statement brings in, ``from a import b`` as a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def all_imports(module):
    return [name for node in ast.walk(tree_of(module)) for name in imported_names(node)]


def imports_within(module):
    """Modules of the package that this one imports."""
    parts = [name.split(".") for name in all_imports(module)]
    return {part[1] for part in parts if part[0] == "sknan" and len(part) > 1}


def test_every_module_has_a_floor():
    assert set(MODULES) <= set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down_or_sideways(module):
    upward = [
        f"{module} (floor {FLOOR[module]}) imports {other} (floor {FLOOR[other]})"
        for other in imports_within(module)
        if FLOOR[other] > FLOOR[module]
    ]
    assert upward == []


def test_no_module_imports_itself_by_way_of_others():
    below = {module: imports_within(module) for module in MODULES}
    settled = set()
    while len(settled) < len(MODULES):
        free = {m for m in MODULES if m not in settled and below[m] <= settled}
        assert free, f"a cycle among {sorted(set(MODULES) - settled)}"
        settled |= free


@pytest.mark.parametrize("module", MODULES)
def test_only_optional_and_slow_packages_are_imported_inside_a_function(module):
    functions = [
        node
        for node in ast.walk(tree_of(module))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    inside = {
        name
        for function in functions
        for node in ast.walk(function)
        for name in imported_names(node)
        if name.split(".")[0] not in LATE_PACKAGES
    }
    assert inside == set()


def test_importing_the_package_does_not_import_what_takes_long():
    code = "import sys, sknan; print([n for n in sys.argv[1:] if n in sys.modules])"
    slow = ["skrub", "matplotlib", "polars"]
    found = subprocess.run(
        [sys.executable, "-c", code, *slow], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("module", MODULES)
def test_no_private_part_of_scikit_learn_is_imported(module):
    private = [
        name
        for name in all_imports(module)
        if name.startswith("sklearn.")
        and any(part.startswith("_") for part in name.split("."))
    ]
    assert private == []


def test_the_floors_of_torch_never_import_scikit_learn_estimators():
    # A loss or the guard must be usable in a plain torch loop.
    usable_alone = ("functional", "activations", "losses", "modules", "clipping")
    for module in (*usable_alone, "batching", "schedules", "guard"):
        assert not [n for n in all_imports(module) if n.startswith("sklearn")], module


# -- names ---------------------------------------------------------------------------


def test_the_public_names_are_these():
    assert sorted(sknan.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_offers(module):
    offered = importlib.import_module(f"sknan.{module}")
    assert all(hasattr(offered, name) for name in offered.__all__)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_belongs_to_one_public_module(name):
    homes = [
        module
        for module in PUBLIC_MODULES
        if name in importlib.import_module(f"sknan.{module}").__all__
    ]
    assert len(homes) == 1


def test_the_version_is_that_of_the_package():
    assert sknan.__version__ == importlib.metadata.version("sknan")


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()


# -- docstrings ----------------------------------------------------------------------


def public_things():
    """Each public function and class once, by its dotted name."""
    for module in PUBLIC_MODULES:
        offered = importlib.import_module(f"sknan.{module}")
        for name in offered.__all__:
            thing = getattr(offered, name)
            is_ours = getattr(thing, "__module__", "").startswith("sknan")
            if is_ours and (inspect.isclass(thing) or inspect.isfunction(thing)):
                yield f"{module}.{name}", thing


THINGS = dict(public_things())


def is_from_elsewhere(cls, name):
    """Whether a method stands in for one of a class that is not ours."""
    # The mixin has no parent of its own: it stands before skorch's nets.
    bases = skorch.NeuralNet.__mro__ if cls is sknan.GuardMixin else cls.__mro__[1:]
    others = [c for c in bases if not c.__module__.startswith("sknan")]
    return any(name in vars(c) for c in others)


def documented_signatures():
    """What must document its parameters, with whether it may leave them out."""
    for label, thing in THINGS.items():
        if inspect.isfunction(thing):
            yield label, thing, thing, True
            continue
        if "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False):
            yield label, thing, thing.__init__, True
        if thing.__name__ not in PUBLIC_NAMES:
            continue
        for name, method in vars(thing).items():
            method = getattr(method, "__func__", method)
            if inspect.isfunction(method) and not name.startswith("_"):
                # An override may say that its parameters are those of its parent.
                must = not is_from_elsewhere(thing, name)
                yield f"{label}.{name}", method, method, must


SIGNATURES = {
    label: (documented, function, must)
    for label, documented, function, must in documented_signatures()
}


def sections_of(docstring):
    lines = inspect.cleandoc(docstring).splitlines()
    starts = [
        i
        for i in range(1, len(lines))
        if re.fullmatch("-{3,}", lines[i]) and lines[i - 1]
    ]
    ends = [i - 1 for i in starts[1:]] + [len(lines)]
    return {
        lines[i - 1]: lines[i + 1 : end] for i, end in zip(starts, ends, strict=False)
    }


def documented_parameters(docstring):
    """Name to (type line, description) of the Parameters section, in order."""
    found = {}
    names = []
    for line in sections_of(docstring).get("Parameters", []):
        if line and not line.startswith(" "):
            listed, _, type_line = line.partition(" : ")
            names = [name.strip().lstrip("*") for name in listed.split(",")]
            found |= dict.fromkeys(names, (type_line, ""))
        else:
            for name in names:
                type_line, description = found[name]
                found[name] = (type_line, f"{description} {line.strip()}".strip())
    return found


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def real_parameters(function):
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if name not in ("self", "cls")}


def documented_default(type_line):
    match = re.search(r"default=(.+)$", type_line)
    if match is None:
        return inspect.Parameter.empty
    known = {"np": np, "math": math, "torch": torch, "inf": math.inf, "nan": math.nan}
    value = match.group(1).strip()
    try:
        return eval(value, known)
    except NameError:
        return value  # the name of a module's constant


def are_equal(documented, real, function):
    if isinstance(documented, str) and not isinstance(real, str):
        documented = function.__globals__.get(documented, documented)
    if isinstance(documented, float) and isinstance(real, float):
        return documented == real or (math.isnan(documented) and math.isnan(real))
    return type(documented) is type(real) and documented == real


@pytest.mark.parametrize("label", THINGS)
def test_every_public_thing_has_a_docstring_of_its_own(label):
    summary = (
        vars(THINGS[label]).get("__doc__") or THINGS[label].__doc__ or ""
    ).strip()
    assert summary
    assert summary.splitlines()[0].endswith(".")


@pytest.mark.parametrize("label", SIGNATURES)
def test_the_documented_parameters_are_those_of_the_signature(label):
    documented, function, must = SIGNATURES[label]
    found = documented_parameters(documented.__doc__ or "")
    real = real_parameters(function)
    if found or must:
        assert set(found) == set(real)
        # Variadic ones may stand where they read best.
        fixed = [name for name in real if real[name].kind not in VARIADIC]
        assert [name for name in found if name in fixed] == fixed


@pytest.mark.parametrize("label", SIGNATURES)
def test_the_documented_defaults_are_those_of_the_signature(label):
    documented, function, _ = SIGNATURES[label]
    real = real_parameters(function)
    wrong = []
    for name, (type_line, _) in documented_parameters(documented.__doc__ or "").items():
        if name not in real or type_line.startswith("Ignored"):
            continue
        said, default = documented_default(type_line), real[name].default
        if not are_equal(said, default, function):
            wrong.append(f"{name}: documented {said!r}, really {default!r}")
    assert wrong == []


@pytest.mark.parametrize("label", SIGNATURES)
def test_every_public_parameter_has_a_type_and_a_description(label):
    documented, function, _ = SIGNATURES[label]
    real = real_parameters(function)
    bare = []
    found = documented_parameters(documented.__doc__ or "")
    for name, (type_line, text) in found.items():
        is_variadic = name in real and real[name].kind in VARIADIC
        if not text or not (type_line or is_variadic):
            bare.append(name)
    assert bare == []


def test_the_two_estimators_share_their_defaults():
    first = real_parameters(sknan.StableNetClassifier.__init__)
    second = real_parameters(sknan.StableNetRegressor.__init__)
    differ = {n for n in second if first[n].default != second[n].default}
    assert differ == {"criterion"}
    assert set(first) - set(second) == {"class_weight"}


def test_the_checks_of_this_page_find_what_is_wrong():
    def sample(a, b=1, *, c=None):
        """Do a thing.

        Parameters
        ----------
        a, b : int, default=2
            Numbers.
        d : str
        """

    found = documented_parameters(sample.__doc__)
    assert list(found) == ["a", "b", "d"]
    assert found["b"] == ("int, default=2", "Numbers.")
    assert documented_default(found["b"][0]) == 2
    assert documented_default(found["d"][0]) is inspect.Parameter.empty
    assert found["d"] == ("str", "")
