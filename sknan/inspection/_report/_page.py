"""HTML report about the data, the training and the result of a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline

from sknan._utils.html import element
from sknan.inspection._report._html import STYLE, page
from sknan.inspection._report._sections import sections_of
from sknan.nets._curves import last_of, networks_of, skorch_net_of


class HTMLReport:
    """HTML page about a training, to be saved, displayed in a notebook or printed.

    Returned by :func:`report`.

    Parameters
    ----------
    title : str
        Title of the page.
    summary : str
        Text of a few lines, which is printed instead of the page.
    body : str
        HTML of the page without its head.
    """

    def __init__(self, title: str, summary: str, body: str) -> None:
        self.title = title
        self.summary = summary
        self.body = body

    def __str__(self) -> str:
        return self.summary

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the page for display in a notebook."""
        return self.body

    def to_html(self) -> str:
        """Return the page as a complete HTML document.

        Returns
        -------
        str
        """
        return page(self.title, self.body)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to one file, which needs no other files.

        Parameters
        ----------
        path : str or path-like
            Path of the file, such as ``"report.html"``.
        """
        Path(path).write_text(self.to_html(), encoding="utf-8")


def report(
    estimator: Any,
    X: Any = None,
    y: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
) -> HTMLReport:
    """Report on one page about the data, the training and the result of a model.

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted model that is, or ends in, a StableNet or GuardedNet estimator.
    X : DataFrame, array, sparse matrix or list of rows, or None, default=None
        Table for an audit and a score.
    y : Series, array-like of shape (n_samples,) or None, default=None
        Target of the rows of ``X``.
    path : str, path-like or None, default=None
        Path of the file to write. None writes no file.

    Returns
    -------
    HTMLReport
        Page that is displayed in a notebook, prints as a few lines, and can be saved.

    Raises
    ------
    NotFittedError
        If ``estimator`` has not been fitted.
    TypeError
        If ``estimator`` does not end in a network of this package.
    FileNotFoundError
        If the folder of ``path`` does not exist. This is checked before any work is
        done.

    See Also
    --------
    sknan.TrainingDisplay : The figure of the training alone.
    sknan.audit : The findings about the table.

    Notes
    -----
    The page is one file that includes its style and figures. It loads nothing from the
    network, runs no script, and follows the light or dark setting of the browser.
    Without matplotlib it has no figures and mentions this. The page contains column
    names, fill values and extremes of the table, but none of its rows.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier, report
    >>> X, y = load_iris(return_X_y=True)
    >>> net = StableNetClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> print(report(net))
    StableNetClassifier: 5 epochs, no step failed.
    """
    networks = networks_of(estimator)
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(
            f"report cannot write {str(path)!r}: there is no folder "
            f"{str(Path(path).parent)!r}. Create it first."
        )
    sections = sections_of(estimator, X, y)
    name = _name_of(estimator)
    title = f"Training of {name}"
    summary = f"{name}: {_summary(estimator, networks)}"
    body = "".join([element("h1", title), element("p", summary), *sections])
    body = f'<div class="sknan-report"><style>{STYLE}</style>{body}</div>'
    result = HTMLReport(title, summary, body)
    if path is not None:
        result.save(path)
    return result


def _name_of(estimator: Any) -> str:
    """Return the class of the network with the classes around it."""
    best = getattr(estimator, "best_estimator_", None)
    classes = [type(last_of(estimator)).__name__]
    if isinstance(estimator if best is None else best, Pipeline):
        classes.append("Pipeline")
    if best is not None:
        classes.insert(1, type(estimator).__name__)
    first, *others = classes
    return f"{first} in a {' over a '.join(others)}" if others else first


def _summary(estimator: Any, networks: dict[str, Any]) -> str:
    lengths = [len(skorch_net_of(net).history) for net in networks.values()]
    reports = last_of(estimator).nonfinite_reports_
    epochs = _epochs(lengths)
    if not reports:
        return f"{epochs}, no step failed."
    steps = "1 step" if len(reports) == 1 else f"{len(reports)} steps"
    rate = min(net.effective_lr_ for net in networks.values())
    return (
        f"{epochs}, {steps} failed and training was rescued; it ended at a learning "
        f"rate of {rate:.3g}. First failure: {reports[0]}"
    )


def _epochs(lengths: list[int]) -> str:
    fewest, most = min(lengths), max(lengths)
    count = f"{fewest} to {most}" if fewest < most else str(most)
    text = f"{count} epoch{'s' if most != 1 else ''}"
    return f"{len(lengths)} networks, {text} each" if len(lengths) > 1 else text
