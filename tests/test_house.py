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


def dotted_name(path):
    """Name of a module below the package; an ``__init__`` has that of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {dotted_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in PATHS if name]
PUBLIC_MODULES = [
    *(name for name in MODULES if not name.startswith("_") and "." not in name),
    "nets.guard",
]

# A package imports those of lower levels only.
LEVELS = {
    "exceptions": 1,
    "functional": 1,
    "_utils": 2,
    "activations": 2,
    "losses": 3,
    "optim": 3,
    "preprocessing": 3,
    "testing": 3,
    "diagnosis": 4,
    "nets": 5,
    "_engine": 6,
    "estimators": 7,
    "inspection": 7,
    "model_selection": 8,
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
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


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
    """Modules of sknan that this one imports, as dotted names below the package."""
    found = set()
    for name in all_imports(module):
        parts = name.split(".")
        if parts[0] == "sknan":
            # The longest part of the name that is a module; the rest is a name in it.
            dotted = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found.add(next(name for name in dotted if name in PATHS))
    return found


def package_of(module):
    return module.partition(".")[0]


def everything_below(modules):
    """Modules that these import, and those that they import in turn."""
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
        own = [m for m in MODULES if package_of(m) == package]
        others = {package_of(name) for m in own for name in imports_within(m)}
        assert set(re.findall(r"`(\w+)`", listed)) == others - {package}, package


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


@pytest.mark.parametrize(
    "package", ["functional", "activations", "losses", "optim", "nets.guard"]
)
def test_the_torch_packages_need_neither_scikit_learn_nor_skorch(package):
    # A loss or the guard must be usable in a plain torch loop. Only the base class of
    # DivergenceWarning is scikit-learn's.
    own = [m for m in MODULES if m == package or m.startswith(f"{package}.")]
    foreign = [
        f"{module} imports {name}"
        for module in everything_below(own) - {"exceptions"}
        for name in all_imports(module)
        if package_of(name) in ("sklearn", "skorch")
    ]
    assert foreign == []


def test_testing_imports_only_utilities():
    own = [m for m in MODULES if package_of(m) == "testing"]
    others = {package_of(name) for m in own for name in imports_within(m)}
    assert others <= {"testing", "_utils"}


def test_the_top_of_the_package_is_short():
    entries = [p for p in PACKAGE.iterdir() if p.name != "__pycache__"]
    assert len(entries) <= 18


# -- names ---------------------------------------------------------------------------


def test_the_public_names_are_these():
    assert sorted(sknan.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if PATHS[m].name != "__init__.py" or m in PUBLIC_MODULES],
)
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


@pytest.mark.parametrize("name", sknan._FORMER_MODULES)
def test_a_module_of_the_flat_layout_is_its_package(name):
    assert importlib.import_module(f"sknan.{name}") is sknan._FORMER_MODULES[name]


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
