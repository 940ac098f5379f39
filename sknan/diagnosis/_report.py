"""Report on a failed training step, and the data that reproduce the step."""

from __future__ import annotations

import html
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from sknan._utils.archive import load, require_like, save
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.tree import tree_map
from sknan._utils.validation import PATH, check_parameter

Phase = Literal["input", "forward", "loss", "backward", "step"]
Cause = Literal[
    "data",
    "learning_rate",
    "gradient",
    "activation",
    "loss",
    "architecture",
    "precision",
]

_HEADLINES: dict[Phase, str] = {
    "input": "Non-finite input",
    "forward": "Non-finite output",
    "loss": "Non-finite loss",
    "backward": "Non-finite gradient",
    "step": "Training diverged",
}


# Version of the archive format. Archives of other versions are refused.
_FORMAT = "sknan report 1"

# Read once, because it opens files.
_VERSIONS = {"sknan": version("sknan"), "torch": str(torch.__version__)}


def listed(name: str, values: Sequence[Any]) -> str:
    """Return the first values after their name, such as ``"rows 2, 7"``.

    Parameters
    ----------
    name : str
        Name of one of the values.
    values : sequence of object
        At least one value.
    """
    shown = ", ".join(str(value) for value in values[:10])
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    return f"{name}{'s' if len(values) > 1 else ''} {shown}{more}"


@dataclass(frozen=True, eq=False)
class Capsule:
    """Data of a failed step; :func:`sknan.diagnosis.reproduce` runs it again.

    Parameters
    ----------
    inputs, target : Tensor, or nested tuples, lists or dicts of Tensor
        Data of the batch, on the CPU.
    weights : dict of str to dict
        State of each network and criterion, by name in the net, such as "module".
    random_state : Tensor of uint8
        State of torch's random generator before the forward pass.
    is_training : bool
        Whether the module was in training mode.
    parameters : dict
        Parameters of the net: numbers, strings, and names of classes.
    versions : dict of str to str
        Versions of torch and sknan.
    """

    inputs: Any
    target: Any
    weights: dict[str, dict[str, Any]]
    random_state: Tensor
    is_training: bool
    parameters: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name: tensors and plain Python objects only."""
        return dict(vars(self))


@dataclass(frozen=True)
class NonFiniteReport:
    """Report on a training step that became non-finite or exploded.

    Parameters
    ----------
    phase : {"input", "forward", "loss", "backward", "step"}
        Part of the step in which the first non-finite value appeared. ``"step"`` means
        that the weights themselves have diverged.
    cause : {"data", "learning_rate", "gradient", "activation", "loss", \
"architecture", "precision"}
        Cause of the failure, judged from the evidence.
    evidence : str
        Sentence with the numbers that were found.
    action : str
        Sentence that says what to change.
    module : str, default=""
        Dotted path inside the user's module, ``""`` for the module itself and
        ``"criterion"`` for the loss.
    operation : str or None, default=None
        ATen name of the operation, if it is known.
    source : str or None, default=None
        ``file:line`` in the user's code, if it is known.
    epoch, batch : int or None, default=None
        Position in the training, counted from 1.
    rows : tuple of int, default=()
        Rows to blame, counted from 0.
    columns : tuple of int or str, default=()
        Columns to blame.
    rows_in : {"data", "batch"}, default="batch"
        Data in which ``rows`` are counted. It is the batch if a data loader does not
        disclose which rows it has drawn.
    error : str, default=""
        Type of the exception that the operation has raised, such as ``"ValueError"``.
    recovery : str, default=""
        Sentence that says how the guard recovered; empty if training stopped.
    capsule : Capsule or None, default=None
        Data that reproduce the failure; see :meth:`save`. A pickled report does not
        include the capsule, because it contains a batch of the data.

    Examples
    --------
    >>> from sknan.diagnosis import NonFiniteReport
    >>> print(NonFiniteReport("loss", "loss", "The loss is inf.", "Bound it.", epoch=2))
    Non-finite loss at epoch 2. The loss is inf. Bound it.
    """

    phase: Phase
    cause: Cause
    evidence: str
    action: str
    module: str = ""
    operation: str | None = None
    source: str | None = None
    epoch: int | None = None
    batch: int | None = None
    rows: tuple[int, ...] = ()
    columns: tuple[int | str, ...] = ()
    rows_in: Literal["data", "batch"] = "batch"
    error: str = ""
    recovery: str = ""
    capsule: Capsule | None = field(default=None, repr=False, compare=False)

    @property
    def place(self) -> str:
        """Epoch and batch in words, such as ``"epoch 1, batch 3"``."""
        parts = [("epoch", self.epoch), ("batch", self.batch)]
        return ", ".join(f"{name} {value}" for name, value in parts if value)

    @property
    def headline(self) -> str:
        """Failure and its place in words, without evidence and action."""
        what = self.error or _HEADLINES[self.phase]
        of = f" of {self.operation}" if self.operation else ""
        where = f" in {self.module!r}" if self.module else ""
        line = f" ({self.source})" if self.source else ""
        when = f" at {self.place}" if self.place else ""
        return f"{what}{of}{where}{line}{when}"

    def __str__(self) -> str:
        places = f" {self._places()}" if self.rows or self.columns else ""
        return f"{self.headline}. {self.evidence}{places} {self.action}"

    def _places(self) -> str:
        """Return a sentence with rows and columns."""
        named = (("row", self.rows), ("column", self.columns))
        parts = [listed(name, values) for name, values in named if values]
        of = " of the batch" if self.rows and self.rows_in == "batch" else ""
        return f"To blame: {', '.join(parts)}{of}."

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but the capsule, as plain Python objects.

        Returns
        -------
        dict
            Values by name, which ``json.dumps`` accepts.
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name != "capsule"
        }

    @classmethod
    def from_dict(
        cls, fields: dict[str, Any], capsule: Capsule | None = None
    ) -> NonFiniteReport:
        """Return the report with the fields that :meth:`to_dict` has returned.

        Parameters
        ----------
        fields : dict
            Values by name.
        capsule : Capsule or None, default=None
            Data that reproduce the failure.

        Returns
        -------
        NonFiniteReport
        """
        sequences = {name: tuple(fields[name]) for name in ("rows", "columns")}
        return cls(**{**fields, **sequences}, capsule=capsule)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write report and capsule to a file that reproduces the failure elsewhere.

        Parameters
        ----------
        path : str or path-like
            Path of the file. It is a weights-only archive of torch, with tensors,
            numbers and strings, and with a checksum. It runs no code. It contains one
            batch of the data.

        Raises
        ------
        ValueError
            If the report has no capsule.
        """
        check_parameter("NonFiniteReport.save", "path", path, PATH)
        if self.capsule is None:
            raise ValueError(
                "The report has no capsule to save. Only the first report of a "
                "training and the report of an error have one, and pickling removes it."
            )
        contents = {"report": self.to_dict(), "capsule": self.capsule.to_dict()}
        save({"format": _FORMAT, **contents}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NonFiniteReport:
        """Read a report with its capsule, without running any code from the file.

        Parameters
        ----------
        path : str or path-like
            Path of a file that :meth:`save` has written.

        Returns
        -------
        NonFiniteReport
            Report that :func:`sknan.diagnosis.reproduce` accepts.

        Raises
        ------
        ValueError
            If the file is damaged, or is something else.
        """
        check_parameter("NonFiniteReport.load", "path", path, PATH)
        contents = load(path)
        blank = cls("loss", "loss", "", "").to_dict()
        capsule = Capsule(None, None, {}, torch.get_rng_state(), True, {}, {})
        expected = {"format": _FORMAT, "report": blank, "capsule": capsule.to_dict()}
        try:
            require_like(contents, expected, "file")
            if contents["format"] != _FORMAT:
                raise ValueError(f"The format is {contents['format']!r}.")
            report = cls.from_dict(contents["report"], Capsule(**contents["capsule"]))
            _require_types(report)
            _require_types(report.capsule)
        except unless(is_of_signal, Exception) as error:
            raise ValueError(
                f"The file {os.fspath(path)!r} is not a report of this version of "
                "sknan, or it is damaged. Write it again with report.save(path)."
            ) from error
        return report

    def __getstate__(self) -> dict[str, Any]:
        # A fitted model contains no training data, and so its reports must not either.
        return {**vars(self), "capsule": None}

    def _repr_html_(self) -> str:
        """Return the report as a short table for notebooks."""
        shown = [
            ("phase", self.phase),
            ("cause", self.cause.replace("_", " ")),
            ("module", self.module),
            ("operation", self.operation),
            ("line", self.source),
            ("when", self.place),
            ("rows", ", ".join(map(str, self.rows))),
            ("columns", ", ".join(map(str, self.columns))),
            ("evidence", self.evidence),
            ("what to do", self.action),
            ("what was done", self.recovery),
        ]
        lines = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for name, value in shown
            if value
        )
        title = html.escape(_HEADLINES[self.phase])
        return f"<table><caption>{title}</caption>{lines}</table>"


def _require_types(part: Any) -> None:
    """Raise ``TypeError`` if a field of a dataclass is not of the type it declares."""
    for name, hint in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if not _is_of(value, hint):
            raise TypeError(f"{name} is not of type {hint}: {value!r}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value, with all of its elements, is of a type."""
    kind, args = get_origin(hint), get_args(hint)
    if kind is Literal:
        return type(value) is str and value in args
    if kind is UnionType:
        return any(_is_of(value, arg) for arg in args)
    if kind is tuple:
        return type(value) is tuple and all(_is_of(item, args[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(
            _is_of(key, args[0]) and _is_of(item, args[1])
            for key, item in value.items()
        )
    return hint is Any or type(value) is hint


def _plain(value: Any) -> Any:
    """Return a parameter as an object that a weights-only archive can contain."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _copied(data: Any) -> Any:
    """Return nested data with tensors copied to the CPU and other leaves made plain."""

    def copy(leaf: Any) -> Any:
        return leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else _plain(leaf)

    return tree_map(copy, data)


def capture(
    modules: Mapping[str, Any],
    batch: tuple[Any, Any],
    random_state: Tensor,
    parameters: Mapping[str, Any],
) -> Capsule:
    """Copy the data that reproduce a step.

    Parameters
    ----------
    modules : mapping of str to object
        Networks and criteria by name. Objects that are not modules are ignored.
    batch : (object, object)
        Inputs and target.
    random_state : Tensor
        State of torch's random generator before the forward pass.
    parameters : mapping
        Parameters of the net.

    Returns
    -------
    Capsule
    """
    networks = {n: m for n, m in modules.items() if isinstance(m, nn.Module)}
    return Capsule(
        inputs=_copied(batch[0]),
        target=_copied(batch[1]),
        weights={name: _copied(m.state_dict()) for name, m in networks.items()},
        random_state=random_state.clone(),
        is_training=any(module.training for module in networks.values()),
        parameters=_plain(parameters),
        versions=dict(_VERSIONS),
    )
