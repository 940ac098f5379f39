"""One page of reference for each public module, written from ``__all__``.

The pages cannot lag behind the package: a public name that is added is on its page at
the next build, and a page for a private module cannot come about.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any, get_args

import sknan

# In reading order: what a user of estimators needs, then of torch, then who builds on
# the engine.
GROUPS = {
    "Estimators and tables": [
        "estimators",
        "preprocessing",
        "model_selection",
        "inspection",
        "exceptions",
    ],
    "In any torch code": [
        "functional",
        "activations",
        "losses",
        "optim",
        "diagnosis",
    ],
    "skorch's nets": ["nets"],
    "Testing": ["testing"],
    "To build on": ["nets.guard"],
}


def public_modules() -> list[str]:
    """Names of the public modules and packages, as they lie in the package."""
    folder = Path(sknan.__file__).parent
    names = [module.name for module in pkgutil.iter_modules([str(folder)])]
    return sorted([n for n in names if not n.startswith("_")] + ["nets.guard"])


def grouped_modules() -> dict[str, list[str]]:
    """The groups above, of what there is; a module in none of them comes last."""
    there = public_modules()
    groups = {
        title: [name for name in names if name in there]
        for title, names in GROUPS.items()
    }
    placed = [name for names in groups.values() for name in names]
    groups["To build on"] += [name for name in there if name not in placed]
    return groups


def address(module: str, name: str) -> str:
    """Where users import a name from: the package if it is offered there."""
    return f"sknan.{name}" if name in sknan.__all__ else f"sknan.{module}.{name}"


def summary_of(thing: object) -> str:
    """First line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def entry(module: str, name: str) -> str:
    """The directive that shows one public name."""
    thing = getattr(importlib.import_module(f"sknan.{module}"), name)
    where = address(module, name)
    path, _, last = where.rpartition(".")
    lines = [f".. currentmodule:: {path}", ""]
    if inspect.isclass(thing):
        lines += [f".. autoclass:: {last}"]
        lines += [f"   :members: {members}"] if (members := own_methods(thing)) else []
    elif inspect.isfunction(thing):
        lines += [f".. autofunction:: {last}"]
    else:
        lines += [f".. py:data:: {last}", "", *values_of(thing)]
    return "\n".join([*lines, ""])


def values_of(constant: Any) -> list[str]:
    """What a constant holds, a line for each value."""
    if isinstance(constant, dict):
        held = [f"``{key!r}``: ``{value.__name__}``" for key, value in constant.items()]
    else:
        held = [f"``{value!r}``" for value in get_args(constant) or constant]
    return [f"   - {line}" for line in held]


def own_methods(cls: type) -> str:
    """Public methods and properties that are written in this package."""
    ours = [
        base
        for base in cls.__mro__
        if base.__module__.startswith("sknan.") and base is not object
    ]
    names = {
        name: None
        for base in ours
        for name, value in vars(base).items()
        if not name.startswith("_")
        and isinstance(value, (staticmethod, classmethod, property, type(lambda: None)))
        and inspect.getdoc(getattr(cls, name, None))
        and name != "forward"
    }
    return ", ".join(sorted(names))


def heading(text: str, sign: str) -> str:
    """A heading in reStructuredText."""
    return f"{text}\n{sign * len(text)}\n"


def page_of(module: str) -> str:
    """The page of one module."""
    there = importlib.import_module(f"sknan.{module}")
    lines = [heading(f"sknan.{module}", "="), f".. py:module:: sknan.{module}"]
    lines += ["", inspect.cleandoc(there.__doc__ or ""), ""]
    for name in there.__all__:
        lines += [heading(name, "-"), entry(module, name)]
    return "\n".join(lines)


def index_page() -> str:
    """The first page: what is in each module, in a line."""
    lines = [heading("API reference", "=")]
    lines += [
        "Every public name. What ``from sknan import ...`` gives is shown under that "
        "name; everything else is imported from its module.",
        "",
    ]
    for title, modules in grouped_modules().items():
        lines += [heading(title, "-"), ".. list-table::", "   :widths: 30 70", ""]
        for module in modules:
            there = importlib.import_module(f"sknan.{module}")
            lines += [
                f"   * - :doc:`sknan.{module} <{module}>`",
                f"     - {summary_of(there)}",
            ]
        lines += ["", ".. toctree::", "   :hidden:", ""]
        lines += [f"   {module}" for module in modules] + [""]
    return "\n".join(lines)


def write_api_reference(folder: Path) -> None:
    """Write all pages; those that stay the same are not touched."""
    folder.mkdir(exist_ok=True)
    pages = {"index": index_page()} | {m: page_of(m) for m in public_modules()}
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def shape_into_notes(
    app: object, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Move a section ``Shape`` to the head of the notes, for autodoc."""
    if "Shape" not in lines:
        return
    start = lines.index("Shape")
    end = next((i for i in range(start + 2, len(lines)) if not lines[i]), len(lines))
    text = " ".join(line.strip() for line in lines[start + 2 : end])
    shape = ["*Shape:* " + text.replace("*", r"\*")]  # any further axes, no emphasis
    del lines[start : end + 1]
    if "Notes" in lines:
        at = lines.index("Notes") + 2
        lines[at:at] = [*shape, ""]
    else:
        at = lines.index("Examples") if "Examples" in lines else len(lines)
        lines[at:at] = ["", "Notes", "-----", *shape, ""]
