"""Structure of the package: imports, public names, and documented parameters."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import skorch
import torch

import sknan

PACKAGE = Path(sknan.__file__).parent


def dotted_name(path):
    """Return the name of a module below ``sknan``; an ``__init__`` has its folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {dotted_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in PATHS if name]
PUBLIC_MODULES = [
    *(name for name in MODULES if not name.startswith("_") and "." not in name),
    "nets.guard",
]

# A package imports only packages of lower levels.
LEVELS = {
    "exceptions": 1,
    "_utils": 2,
    "functional": 3,
    "optim": 3,
    "preprocessing": 3,
    "testing": 3,
    "activations": 4,
    "losses": 4,
    "diagnosis": 4,
    "nets": 5,
    "_engine": 6,
    "estimators": 7,
    "inspection": 7,
    "model_selection": 8,
    "persistence": 8,
}

# These are imported inside functions: they are optional, or slow to import (skrub, and
# flop_counter in CUDA builds of torch).
LATE_PACKAGES = {
    "matplotlib",
    "onnx",
    "onnxscript",
    "pandas",
    "polars",
    "pytest",
    "skl2onnx",
    "skops",
    "pyarrow",
    "skrub",
    "torch.utils.flop_counter.flop_registry",
}

PUBLIC_NAMES = [
    "AuditDisplay",
    "BackupAndRestore",
    "BatchedGridSearchCV",
    "BatchedHalvingSearchCV",
    "BatchedRandomizedSearchCV",
    "ChangedColumnWarning",
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


@functools.cache
def tree_of(module):
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


def imported_names(node):
    """Return the dotted names that a statement imports; ``from a import b`` is a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def all_imports(module):
    return [name for node in ast.walk(tree_of(module)) for name in imported_names(node)]


def imports_within(module):
    """Return the modules of sknan that this one imports, without ``sknan.``."""
    found = set()
    for name in all_imports(module):
        parts = name.split(".")
        if parts[0] == "sknan":
            # The longest prefix that is a module; the rest is a name in that module.
            dotted = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found.add(next(name for name in dotted if name in PATHS))
    return found


def package_of(module):
    return module.partition(".")[0]


def with_all_dependencies(modules):
    """Return these modules and all modules that they import, directly or indirectly."""
    found, waiting = set(), list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports_within(module)
    return found


def test_every_package_has_a_level():
    assert {package_of(module) for module in MODULES} == set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_only_packages_of_lower_levels(module):
    package = package_of(module)
    upward = [
        f"{module} (level {LEVELS[package]}) imports {other} "
        f"(level {LEVELS[package_of(other)]})"
        for other in sorted(imports_within(module))
        if package_of(other) != package and LEVELS[package_of(other)] >= LEVELS[package]
    ]
    assert upward == []


def test_the_architecture_page_shows_these_packages_and_imports():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(
        encoding="utf-8"
    )
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| (.*?) ?\|$", page, flags=re.M)
    assert {name: int(level) for level, name, _ in rows} == LEVELS
    for _, package, listed in rows:
        members = [m for m in MODULES if package_of(m) == package]
        others = {package_of(name) for m in members for name in imports_within(m)}
        assert set(re.findall(r"`(\w+)`", listed)) == others - {package}, package


def test_no_cycle_of_imports():
    imports = {module: imports_within(module) for module in MODULES}
    done = set()
    while len(done) < len(MODULES):
        ready = {m for m in MODULES if m not in done and imports[m] <= done}
        assert ready, f"a cycle among {sorted(set(MODULES) - done)}"
        done |= ready


@pytest.mark.parametrize("module", MODULES)
def test_only_optional_and_slow_packages_are_imported_inside_functions(module):
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
        if LATE_PACKAGES.isdisjoint({name, name.split(".")[0]})
    }
    assert inside == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_private_module_of_scikit_learn_is_imported(module):
    private = [
        name
        for name in all_imports(module)
        if name.startswith("sklearn.")
        and any(part.startswith("_") for part in name.split("."))
    ]
    assert private == []


@pytest.mark.parametrize(
    "package", ["functional", "activations", "losses", "optim", "nets.guard"]
)
def test_the_torch_packages_need_neither_scikit_learn_nor_skorch(package):
    # Losses and the guard must be usable in a plain torch loop. The only exception is
    # the base class of DivergenceWarning, which comes from scikit-learn.
    members = [m for m in MODULES if m == package or m.startswith(f"{package}.")]
    unwanted = [
        f"{module} imports {name}"
        for module in with_all_dependencies(members) - {"exceptions"}
        for name in all_imports(module)
        if package_of(name) in ("sklearn", "skorch")
    ]
    assert unwanted == []


def test_no_block_keeps_the_exception_of_a_signal_handler():
    # They raise it again, or are blocks of ``except unless(is_of_signal, Exception)``.
    kept = []
    for module, path in PATHS.items():
        source = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^( +)except Exception.*\n((?:\1 .*\n)+)", source, re.M)
        passes = (re.search(r" raise$|outputs_by_row", b, re.M) for _, b in blocks)
        if not all(passes) or "suppress(Exception" in source:
            kept.append(module)
    assert kept == []


def test_testing_imports_only_utilities():
    members = [m for m in MODULES if package_of(m) == "testing"]
    others = {package_of(name) for m in members for name in imports_within(m)}
    assert others <= {"testing", "_utils"}


def test_the_package_has_few_entries_at_the_top_level():
    entries = [p for p in PACKAGE.iterdir() if p.name != "__pycache__"]
    assert len(entries) <= 18


# -- names ---------------------------------------------------------------------------


def test_the_public_names_are_these():
    assert sorted(sknan.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_module_lists_its_names(module):
    public = importlib.import_module(f"sknan.{module}")
    assert all(hasattr(public, name) for name in public.__all__)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_belongs_to_one_public_module(name):
    exporters = [
        module
        for module in PUBLIC_MODULES
        if name in importlib.import_module(f"sknan.{module}").__all__
    ]
    assert len(exporters) == 1


@pytest.mark.parametrize("name", sknan._FORMER_MODULES)
def test_a_module_name_of_the_flat_layout_imports_the_new_package(name):
    assert importlib.import_module(f"sknan.{name}") is sknan._FORMER_MODULES[name]
    assert getattr(sknan, name) is sknan._FORMER_MODULES[name]


def test_the_version_equals_the_installed_one():
    assert sknan.__version__ == importlib.metadata.version("sknan")


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").exists()


# -- docstrings ----------------------------------------------------------------------


def public_objects():
    """Yield each public function and class with its dotted name."""
    for module in PUBLIC_MODULES:
        imported = importlib.import_module(f"sknan.{module}")
        for name in imported.__all__:
            thing = getattr(imported, name)
            is_of_sknan = getattr(thing, "__module__", "").startswith("sknan")
            if is_of_sknan and (inspect.isclass(thing) or inspect.isfunction(thing)):
                yield f"{module}.{name}", thing


PUBLIC_OBJECTS = dict(public_objects())


def overrides_another_library(cls, name):
    """Whether a method overrides one of a base class outside sknan."""
    # The mixin has no such base class; it is combined with the nets of skorch.
    bases = skorch.NeuralNet.__mro__ if cls is sknan.GuardMixin else cls.__mro__[1:]
    others = [c for c in bases if not c.__module__.startswith("sknan")]
    return any(name in vars(c) for c in others)


def documented_signatures():
    """Yield label, documented object, function, and whether parameters are required."""
    for label, thing in PUBLIC_OBJECTS.items():
        if inspect.isfunction(thing):
            yield label, thing, thing, True
            continue
        if "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False):
            yield label, thing, thing.__init__, True
        if thing.__name__ not in PUBLIC_NAMES:
            continue
        for name, method in inspect.getmembers(thing):
            method = getattr(method, "__func__", method)
            if not inspect.isfunction(method) or name.startswith("_"):
                continue
            if method.__module__.startswith("sknan"):
                # An override may refer to the parameters of the base class.
                is_required = not overrides_another_library(thing, name)
                yield f"{label}.{name}", method, method, is_required


SIGNATURES = {
    label: (documented, function, is_required)
    for label, documented, function, is_required in documented_signatures()
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
    """Return name: (type line, description) of the Parameters section, in order."""
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
        return value  # the name of a constant of the module


def are_equal(documented, real, function):
    if isinstance(documented, str) and not isinstance(real, str):
        documented = function.__globals__.get(documented, documented)
    if isinstance(documented, float) and isinstance(real, float):
        return documented == real or (math.isnan(documented) and math.isnan(real))
    return type(documented) is type(real) and documented == real


@pytest.mark.parametrize("label", PUBLIC_OBJECTS)
def test_every_public_object_has_a_docstring(label):
    thing = PUBLIC_OBJECTS[label]
    summary = (vars(thing).get("__doc__") or thing.__doc__ or "").strip()
    assert summary
    assert summary.splitlines()[0].endswith(".")


@pytest.mark.parametrize("label", SIGNATURES)
def test_the_documented_parameters_are_those_of_the_signature(label):
    documented, function, is_required = SIGNATURES[label]
    found = documented_parameters(documented.__doc__ or "")
    real = real_parameters(function)
    if found or is_required:
        assert set(found) == set(real)
        # Variadic parameters may be documented in any position.
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
        stated, default = documented_default(type_line), real[name].default
        if not are_equal(stated, default, function):
            wrong.append(f"{name}: documented {stated!r}, really {default!r}")
    assert wrong == []


@pytest.mark.parametrize("label", SIGNATURES)
def test_every_public_parameter_has_a_type_and_a_description(label):
    documented, function, _ = SIGNATURES[label]
    real = real_parameters(function)
    incomplete = []
    found = documented_parameters(documented.__doc__ or "")
    for name, (type_line, text) in found.items():
        is_variadic = name in real and real[name].kind in VARIADIC
        if not text or not (type_line or is_variadic):
            incomplete.append(name)
    assert incomplete == []


def test_the_two_estimators_have_the_same_defaults_except_for_the_loss():
    first = real_parameters(sknan.StableNetClassifier.__init__)
    second = real_parameters(sknan.StableNetRegressor.__init__)
    different = {n for n in second if first[n].default != second[n].default}
    assert different == {"criterion"}
    assert set(first) - set(second) == {"class_weight"}


def test_the_parser_of_docstrings_reads_names_types_and_defaults():
    def sample(a, b=1, *, c=None):
        """Compute a number.

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
