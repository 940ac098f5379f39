"""Generator of the API reference: one page for each public module.

The pages are written from ``__all__`` at each build. They therefore contain every
public name and no private module.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any, get_args

import sknan

# In reading order: for users of estimators, for users of torch and skorch, then for
# developers of estimators.
GROUPS = {
    "Estimators and tables": [
        "estimators",
        "preprocessing",
        "model_selection",
        "inspection",
        "persistence",
        "exceptions",
    ],
    "For any torch code": [
        "functional",
        "activations",
        "losses",
        "optim",
        "diagnosis",
    ],
    "skorch nets": ["nets"],
    "Testing": ["testing"],
    "For developers": ["nets.guard"],
}


def public_modules() -> list[str]:
    """Return the names of the public modules and packages, without ``sknan.``."""
    folder = Path(sknan.__file__).parent
    names = [module.name for module in pkgutil.iter_modules([str(folder)])]
    return sorted([n for n in names if not n.startswith("_")] + ["nets.guard"])


def grouped_modules() -> dict[str, list[str]]:
    """Return the existing modules by group; the last group takes the unlisted ones."""
    existing = public_modules()
    groups = {
        title: [name for name in names if name in existing]
        for title, names in GROUPS.items()
    }
    listed = [name for names in groups.values() for name in names]
    groups["For developers"] += [name for name in existing if name not in listed]
    return groups


def address(module: str, name: str) -> str:
    """Return the path from which users import a name: ``sknan``, or its module."""
    return f"sknan.{name}" if name in sknan.__all__ else f"sknan.{module}.{name}"


def summary_of(thing: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def entry(module: str, name: str) -> str:
    """Return the Sphinx directive for one public name."""
    thing = getattr(importlib.import_module(f"sknan.{module}"), name)
    path, _, last = address(module, name).rpartition(".")
    lines = [f".. currentmodule:: {path}", ""]
    if inspect.isclass(thing):
        lines += [f".. autoclass:: {last}"]
        members = methods_of_sknan(thing)
        lines += [f"   :members: {members}"] if members else []
    elif inspect.isfunction(thing):
        lines += [f".. autofunction:: {last}"]
    else:
        lines += [f".. py:data:: {last}", "", *values_of(thing)]
    return "\n".join([*lines, ""])


def values_of(constant: Any) -> list[str]:
    """Return the values of a constant as a bulleted list, one line for each."""
    if isinstance(constant, dict):
        rows = [f"``{key!r}``: ``{value.__name__}``" for key, value in constant.items()]
    else:
        rows = [f"``{value!r}``" for value in get_args(constant) or constant]
    return [f"   - {row}" for row in rows]


def methods_of_sknan(cls: type) -> str:
    """Return the public methods and properties of a class that sknan implements."""
    classes = [
        base
        for base in cls.__mro__
        if base.__module__.startswith("sknan.") and base is not object
    ]
    names = {
        name: None
        for base in classes
        for name, value in vars(base).items()
        if not name.startswith("_")
        and isinstance(value, (staticmethod, classmethod, property, type(lambda: None)))
        and inspect.getdoc(getattr(cls, name, None))
        and name != "forward"
    }
    return ", ".join(sorted(names))


def heading(text: str, sign: str) -> str:
    """Return a heading in reStructuredText."""
    return f"{text}\n{sign * len(text)}\n"


def page_of(module: str) -> str:
    """Return the page of one module."""
    imported = importlib.import_module(f"sknan.{module}")
    lines = [heading(f"sknan.{module}", "="), f".. py:module:: sknan.{module}"]
    lines += ["", inspect.cleandoc(imported.__doc__ or ""), ""]
    for name in imported.__all__:
        lines += [heading(name, "-"), entry(module, name)]
    return "\n".join(lines)


def row_of(module: str, name: str) -> list[str]:
    """Return the row of one public name in the index: a link and its summary."""
    thing = getattr(importlib.import_module(f"sknan.{module}"), name)
    is_constant = not (inspect.isclass(thing) or inspect.isfunction(thing))
    summary = f"{len(values_of(thing))} values." if is_constant else summary_of(thing)
    path = address(module, name)
    return [f"   * - :py:obj:`{name} <{path}>`", f"     - {summary}"]


def index_page() -> str:
    """Return the first page: every public name with its summary, by module."""
    lines = [heading("API reference", "=")]
    lines += [
        "Every public name, by module. Names that ``from sknan import ...`` gives are "
        "shown as ``sknan.Name`` on their page.",
        "",
    ]
    for title, modules in grouped_modules().items():
        lines += [heading(title, "-")]
        for module in modules:
            imported = importlib.import_module(f"sknan.{module}")
            lines += [f":doc:`sknan.{module} <{module}>`: {summary_of(imported)}", ""]
            lines += [".. list-table::", "   :widths: 30 70", "   :class: names", ""]
            for name in imported.__all__:
                lines += row_of(module, name)
            lines += [""]
        lines += [".. toctree::", "   :hidden:", ""]
        lines += [f"   {module}" for module in modules] + [""]
    return "\n".join(lines)


def write_api_reference(folder: Path) -> None:
    """Write the pages that have changed, and delete those of removed modules."""
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
    """Move the section ``Shape`` to the beginning of ``Notes`` (hook of autodoc)."""
    if "Shape" not in lines:
        return
    start = lines.index("Shape")
    end = next((i for i in range(start + 2, len(lines)) if not lines[i]), len(lines))
    text = " ".join(line.strip() for line in lines[start + 2 : end])
    # The asterisk stands for any further axes here, not for emphasis.
    shape = ["*Shape:* " + text.replace("*", r"\*")]
    del lines[start : end + 1]
    if "Notes" in lines:
        at = lines.index("Notes") + 2
        lines[at:at] = [*shape, ""]
    else:
        at = lines.index("Examples") if "Examples" in lines else len(lines)
        lines[at:at] = ["", "Notes", "-----", *shape, ""]
