"""Support of scikit-learn's callbacks for a ``fit`` without subtasks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sklearn.callback import with_callbacks

Method = TypeVar("Method", bound=Callable[..., Any])


def fit_as_task(method: Method) -> Method:
    """Notify scikit-learn's callbacks when a fit begins and when it ends.

    The fit is one task without subtasks, as in scikit-learn's ``StandardScaler``.

    Parameters
    ----------
    method : callable
        ``fit`` or ``fit_transform`` of a class with ``CallbackSupportMixin``.

    Returns
    -------
    callable
        Method that notifies callbacks.
    """

    @functools.wraps(method)
    def notifying(self: Any, X: Any, y: Any = None, **params: Any) -> Any:
        task = self._init_callback_context()
        task.call_on_fit_task_begin(estimator=self, X=X, y=y)
        # A nested fit of a scikit-learn estimator would mistake this task for its own
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

    return cast(Method, with_callbacks(notifying))
