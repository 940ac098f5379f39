"""HTML report about the data, the training and the result of a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline

from sknan._utils.html import element
from sknan._utils.validation import PATH, Rule, check_parameter
from sknan.inspection._report._html import STYLE, page
from sknan.inspection._report._markdown import as_markdown
from sknan.inspection._report._sections import sections_of
from sknan.nets._curves import last_of, networks_of
from sknan.nets._training_facts import training_caption

_LICENSE: Rule = lambda v: v is None or isinstance(v, str), "text or None"


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
    metadata : dict or None, default=None
        Metadata for the head of :meth:`to_markdown`.
    """

    def __init__(
        self,
        title: str,
        summary: str,
        body: str,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.title = title
        self.summary = summary
        self.body = body
        self.metadata = metadata or {}

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

    def to_markdown(self) -> str:
        """Return the page as Markdown, such as the ``README.md`` of a model.

        It begins with the metadata that the Hugging Face Hub reads, and names the
        figures, which only the HTML page has.

        Returns
        -------
        str
        """
        metadata = {"library_name": "sknan", **self.metadata}
        lines = [f"{key}: {json.dumps(value)}" for key, value in metadata.items()]
        return "\n".join(["---", *lines, "---", "", as_markdown(self.body)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to one file, which needs no other files.

        Parameters
        ----------
        path : str or path-like
            Path of the file, such as ``"report.html"``. A name that ends in ``.md``
            gives Markdown.
        """
        check_parameter("HTMLReport.save", "path", path, PATH)
        is_markdown = Path(path).suffix == ".md"
        text = self.to_markdown() if is_markdown else self.to_html()
        Path(path).write_text(text, encoding="utf-8")


def report(
    estimator: Any,
    X: Any = None,
    y: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
    license: str | None = None,
) -> HTMLReport:
    """Write one page on the data, the training and the result of a model.

    The page is a model card: it has the columns of the training data with their missing
    cells, scores with intervals, calibration, limits of drift, and versions.

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted model that is, or ends in, a StableNet or GuardedNet estimator.
    X : DataFrame, array, sparse matrix or list of rows, or None, default=None
        Table for an audit and a score. The score and the limits of drift are those of
        new rows only if the model was not trained on these.
    y : Series, array-like of shape (n_samples,) or None, default=None
        Target of the rows of ``X``.
    path : str, path-like or None, default=None
        Path of the file to write, in Markdown if it ends in ``.md``, else in HTML. None
        writes no file.
    license : str or None, default=None
        License of the model, such as ``"mit"``.

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
    NonFiniteDataError
        If ``y`` has missing or infinite values.
    ValueError
        If ``X`` has no rows, or ``y`` does not have the target of each of them.
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
    names, fill values, frequent categories and extremes of the table, but none of its
    rows.

    Intervals of accuracies and shares are those of Wilson, and the others are
    percentiles of a bootstrap of the rows. The limits of drift apply to a batch of 1000
    rows: a share or a median of the batch differs from that of ``X`` by more than both
    samples explain. Together the limits are exceeded by at most about 1 % of batches
    from the same population. For predictions and accuracy this holds only if the model
    was not trained on the rows of ``X``, so pass rows that were held out.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier, report
    >>> X, y = load_iris(return_X_y=True)
    >>> net = StableNetClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> print(report(net))
    StableNetClassifier: 5 epochs, no step failed.
    """
    networks_of(estimator)  # raises for another model
    if path is not None:
        check_parameter("report", "path", path, PATH)
        if not Path(path).parent.is_dir():
            raise FileNotFoundError(
                f"report cannot write {str(path)!r}: there is no folder "
                f"{str(Path(path).parent)!r}. Create it first."
            )
    check_parameter("report", "license", license, _LICENSE)
    if X is None and y is not None:
        raise ValueError(
            "report was given y without X. Pass the rows of this target as X, or "
            "leave out y."
        )
    if getattr(X, "shape", (None,))[0] == 0 or (isinstance(X, list) and not X):
        raise ValueError(
            "X has no rows. Pass at least one row, or leave out X and y for a report "
            "of the training alone."
        )
    sections = sections_of(estimator, X, y, license)
    name = _name_of(estimator)
    title = f"Training of {name}"
    last = last_of(estimator)
    summary = f"{name}: {training_caption(last)}."
    if last.nonfinite_reports_:
        summary += f" First failure: {last.nonfinite_reports_[0]}"
    body = "".join([element("h1", title), element("p", summary), *sections])
    body = f'<div class="sknan-report"><style>{STYLE}</style>{body}</div>'
    is_classifier = hasattr(last, "classes_")
    task = "classification" if is_classifier else "regression"
    metadata: dict[str, Any] = {} if license is None else {"license": license}
    metadata["tags"] = ["sknan", f"tabular-{task}"]
    result = HTMLReport(title, summary, body, metadata)
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
