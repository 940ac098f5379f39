"""A ``fit`` in one piece as a task that scikit-learn's callbacks are told of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sklearn.callback import with_callbacks

__all__ = ["fit_as_task"]

Method = TypeVar("Method", bound=Callable[..., Any])


def fit_as_task(method: Method) -> Method:
    """Have scikit-learn's callbacks told when a fit begins, and that it has ended.

    As in scikit-learn's ``StandardScaler``: one task, without parts.

    Parameters
    ----------
    method : callable
        ``fit`` or ``fit_transform`` of a class with ``CallbackSupportMixin``.

    Returns
    -------
    callable
        The same method, told of.
    """

    @functools.wraps(method)
    def told(self: Any, X: Any, y: Any = None, **params: Any) -> Any:
        task = self._init_callback_context()
        task.call_on_fit_task_begin(estimator=self, X=X, y=y)
        # A fit of scikit-learn's own within this one would take the task for its own,
        # and end it.
        del self._callback_fit_ctx
        try:
            fitted = method(self, X, y, **params)
        finally:
            self._callback_fit_ctx = task
        task.call_on_fit_task_end(
            estimator=self, X=X, y=y, reconstruction_attributes={}
        )
        return fitted

    return cast(Method, with_callbacks(told))
