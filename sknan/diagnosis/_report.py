"""What is known of a failed step."""

from __future__ import annotations

import dataclasses
import html
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from sknan._utils.archive import save
from sknan.diagnosis._capsule import FORMAT, Capsule

__all__ = ["Cause", "NonFiniteReport", "Phase"]

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


@dataclass(frozen=True)
class NonFiniteReport:
    """One step of training that went non-finite or exploded.

    Parameters
    ----------
    phase : {"input", "forward", "loss", "backward", "step"}
        Where in the step the first non-finite value appeared; ``"step"`` means that the
        weights themselves ran away.
    cause : {"data", "learning_rate", "gradient", "activation", "loss", \
"architecture", "precision"}
        What is to blame, judged from the evidence.
    evidence : str
        One sentence with the numbers.
    action : str
        One sentence: what to change.
    module : str, default=""
        Dotted path inside the user's module, ``""`` for the module itself and
        ``"criterion"`` for the loss.
    operation : str or None, default=None
        ATen name of the operation, where it is known.
    source : str or None, default=None
        ``file:line`` in the user's code, where it is known.
    epoch, batch : int or None, default=None
        Position in the training, counted from 1.
    rows : tuple of int, default=()
        Rows to blame, counted from 0.
    columns : tuple of int or str, default=()
        Columns to blame.
    rows_in : {"data", "batch"}, default="batch"
        Whether they are rows of the training data, or of the batch: nobody knows which
        rows a data loader has drawn.
    recovery : str, default=""
        One sentence: what the guard did about it; empty where training stopped.
    capsule : Capsule or None, default=None
        What reproduces the failure; see :meth:`save`. Left behind on pickling, since it
        holds a batch of the data.

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
    recovery: str = ""
    capsule: Capsule | None = field(default=None, repr=False, compare=False)

    @property
    def place(self) -> str:
        """Epoch and batch in words, such as ``"epoch 1, batch 3"``."""
        parts = [("epoch", self.epoch), ("batch", self.batch)]
        return ", ".join(f"{name} {value}" for name, value in parts if value)

    @property
    def headline(self) -> str:
        """What happened where, without evidence and action."""
        what = _HEADLINES[self.phase]
        of = f" of {self.operation}" if self.operation else ""
        where = f" in {self.module!r}" if self.module else ""
        line = f" ({self.source})" if self.source else ""
        when = f" at {self.place}" if self.place else ""
        return f"{what}{of}{where}{line}{when}"

    def __str__(self) -> str:
        places = f" {self._places()}" if self.rows or self.columns else ""
        return f"{self.headline}. {self.evidence}{places} {self.action}"

    def _places(self) -> str:
        """Rows and columns in a sentence."""
        parts = []
        for name, values in (("row", self.rows), ("column", self.columns)):
            if values:
                shown = ", ".join(str(value) for value in values[:10])
                more = f" and {len(values) - 10} more" if len(values) > 10 else ""
                parts.append(f"{name}{'s' if len(values) > 1 else ''} {shown}{more}")
        of = " of the batch" if self.rows and self.rows_in == "batch" else ""
        return f"To blame: {', '.join(parts)}{of}."

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as plain Python objects.

        Returns
        -------
        dict
            Ready for ``json.dumps``.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name != "capsule"]
        fields = {name: getattr(self, name) for name in names}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }

    @classmethod
    def from_dict(
        cls, fields: dict[str, Any], capsule: Capsule | None = None
    ) -> NonFiniteReport:
        """The report that :meth:`to_dict` made these fields of.

        Parameters
        ----------
        fields : dict
            All fields by name.
        capsule : Capsule or None, default=None
            What reproduces the failure, which is none of them.

        Returns
        -------
        NonFiniteReport
        """
        sequences = {name: tuple(fields[name]) for name in ("rows", "columns")}
        return cls(**{**fields, **sequences}, capsule=capsule)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write report and capsule to a file with which anyone reproduces the failure.

        Parameters
        ----------
        path : str or path-like
            Of a weights-only archive of torch: tensors, numbers and strings, of which
            none is run on loading. It holds one batch of the data.

        Raises
        ------
        ValueError
            If the report has no capsule.
        """
        if self.capsule is None:
            raise ValueError(
                "The report holds no capsule to save: only the first report of a "
                "training and that of an error do, and a pickled one leaves it behind."
            )
        contents = {"format": FORMAT, "report": self.to_dict()}
        save({**contents, "capsule": self.capsule.to_dict()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NonFiniteReport:
        """Read a report with its capsule; no code in the file is run.

        Parameters
        ----------
        path : str or path-like
            That :meth:`save` has written.

        Returns
        -------
        NonFiniteReport
            For :func:`sknan.diagnosis.reproduce`.

        Raises
        ------
        ValueError
            If the file is of another kind or format.
        """
        contents = torch.load(path, map_location="cpu", weights_only=True)
        found = contents.get("format") if isinstance(contents, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{os.fspath(path)} is no report of this version of sknan: its format "
                f"is {found!r}, not {FORMAT}."
            )
        return cls.from_dict(contents["report"], Capsule(**contents["capsule"]))

    def __getstate__(self) -> dict[str, Any]:
        # A fitted model holds no data, and so neither do its reports.
        return {**vars(self), "capsule": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _repr_html_(self) -> str:
        """A short table, for notebooks."""
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
