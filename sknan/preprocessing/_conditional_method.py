"""Methods that an object has only under some of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any


class UnavailableMethodError(AttributeError, ValueError):
    """A method that does not exist under the parameters of the object.

    As an AttributeError it makes ``hasattr(imputer, "partial_fit")`` false, which
    scikit-learn and Dask check. As a ValueError it reports a wrong parameter.
    """


class AvailableUnless:
    """Decorator for a method that exists unless ``find_reason`` returns a reason.

    scikit-learn's ``available_if`` would replace the reason by an AttributeError that
    is no ValueError.

    Parameters
    ----------
    find_reason : callable
        Function of the object. It returns the reason why the method is unavailable, or
        an empty string.
    """

    def __init__(self, find_reason: Callable[[Any], str]) -> None:
        self._find_reason = find_reason

    def __call__(self, function: Callable[..., Any]) -> AvailableUnless:
        """Decorate the method."""
        self.__func__ = function
        update_wrapper(self, function)
        return self

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        """Return the method of an instance, or the function of the class."""
        if instance is None:
            return self.__func__
        if reason := self._find_reason(instance):
            raise UnavailableMethodError(reason)
        return MethodType(self.__func__, instance)
