"""Modules over :mod:`sknan.functional`, for use in any network.

Two families: safe ones, whose value and slope are finite at the edge of their domain,
and bounded ones, whose output has a stated range. None has weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sknan import functional as sf
from sknan.functional._domain import narrow, widen, within

__all__ = [
    "BoundedSigmoid",
    "BoundedTanh",
    "MaskedSoftmax",
    "SafeAcos",
    "SafeAsin",
    "SafeAtanh",
    "SafeDivide",
    "SafeExp",
    "SafeExpm1",
    "SafeLog",
    "SafeLog1p",
    "SafeLogSigmoid",
    "SafeLogSoftmax",
    "SafeLogit",
    "SafeNormalize",
    "SafePower",
    "SafeReciprocal",
    "SafeRsqrt",
    "SafeSoftmax",
    "SafeSoftplus",
    "SafeSqrt",
    "SafeStandardize",
    "SmoothClip",
    "SoftClamp",
]


class _Activation(nn.Module):
    """A function of tensors, with its parameters in the repr."""

    def extra_repr(self) -> str:
        """Parameters as they are written in the constructor."""
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        shown.pop("training")
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


# -- safe: element by element --------------------------------------------------------


class SafeLog(_Activation):
    """Logarithm that is finite for zero, negative and infinite numbers.

    See :func:`sknan.functional.log`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of ``x``."""
        return sf.log(x)


class SafeLog1p(_Activation):
    """Logarithm of 1 + x that is finite at -1 and below.

    See :func:`sknan.functional.log1p`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of 1 + ``x``."""
        return sf.log1p(x)


class SafeExp(_Activation):
    """Exponential that does not overflow.

    See :func:`sknan.functional.exp`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Exponential of ``x``."""
        return sf.exp(x)


class SafeExpm1(_Activation):
    """Exponential minus 1 that does not overflow.

    See :func:`sknan.functional.expm1`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Exponential of ``x``, minus 1."""
        return sf.expm1(x)


class SafeSqrt(_Activation):
    """Square root whose slope at zero is 0, and whose value below it too.

    See :func:`sknan.functional.sqrt`.

    Shape
    -----
    (*) to (*).

    Examples
    --------
    >>> import torch
    >>> from sknan.activations import SafeSqrt
    >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> SafeSqrt()(x).sum().backward()
    >>> x.grad
    tensor([0.0000, 0.2500])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Square root of ``x``."""
        return sf.sqrt(x)


class SafeRsqrt(_Activation):
    """Reciprocal square root that is finite at zero and below.

    See :func:`sknan.functional.rsqrt`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """One over the square root of ``x``."""
        return sf.rsqrt(x)


class SafeReciprocal(_Activation):
    """One over x, and 0 for zero.

    See :func:`sknan.functional.reciprocal`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """One over ``x``."""
        return sf.reciprocal(x)


class SafeLogit(_Activation):
    """Inverse of the sigmoid that is finite at 0 and 1 and outside.

    See :func:`sknan.functional.logit`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logit of ``x``."""
        return sf.logit(x)


class SafeLogSigmoid(_Activation):
    """Logarithm of the sigmoid that is finite at minus infinity.

    See :func:`sknan.functional.log_sigmoid`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the sigmoid of ``x``."""
        return sf.log_sigmoid(x)


class SafeSoftplus(_Activation):
    """Softplus that is finite at infinity.

    See :func:`sknan.functional.softplus`.

    Shape
    -----
    (*) to (*), not negative.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Softplus of ``x``."""
        return sf.softplus(x)


class SafeAtanh(_Activation):
    """Inverse hyperbolic tangent that is finite at -1 and 1 and outside.

    See :func:`sknan.functional.atanh`.

    Shape
    -----
    (*) to (*).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Inverse hyperbolic tangent of ``x``."""
        return sf.atanh(x)


class SafeAsin(_Activation):
    """Inverse sine with a finite slope at -1 and 1.

    See :func:`sknan.functional.asin`.

    Shape
    -----
    (*) to (*), in [-pi/2, pi/2].
    """

    def forward(self, x: Tensor) -> Tensor:
        """Inverse sine of ``x``."""
        return sf.asin(x)


class SafeAcos(_Activation):
    """Inverse cosine with a finite slope at -1 and 1.

    See :func:`sknan.functional.acos`.

    Shape
    -----
    (*) to (*), in [0, pi].
    """

    def forward(self, x: Tensor) -> Tensor:
        """Inverse cosine of ``x``."""
        return sf.acos(x)


class SafePower(_Activation):
    """Power with a fixed exponent, finite for every number.

    See :func:`sknan.functional.power`.

    Parameters
    ----------
    exponent : float
        Finite.

    Shape
    -----
    (*) to (*).
    """

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        """``x`` to the power."""
        return sf.power(x, self.exponent)


class SafeDivide(_Activation):
    """Quotient that is 0 where nothing is divided by.

    See :func:`sknan.functional.divide`.

    Parameters
    ----------
    eps : float or None, default=None
        Sizes of the denominator up to this one count as zero; None chooses by dtype.

    Shape
    -----
    (*) and (*), broadcast, to (*).
    """

    def __init__(self, eps: float | None = None) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Quotient of the two."""
        return sf.divide(numerator, denominator, eps=self.eps)


# -- safe: over a dimension ----------------------------------------------------------


class SafeSoftmax(_Activation):
    """Softmax that has a value for infinite logits.

    See :func:`sknan.functional.softmax`.

    Parameters
    ----------
    dim : int, default=-1
        Dimension that sums to 1.
    eps : float, default=0.0
        Added to the denominator, in units of the largest term.

    Shape
    -----
    (*) to (*), in [0, 1].
    """

    def __init__(self, dim: int = -1, *, eps: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Softmax of ``x``."""
        return sf.softmax(x, self.dim, eps=self.eps)


class MaskedSoftmax(_Activation):
    """Softmax over the elements that a mask lets in; zeros where it lets in none.

    See :func:`sknan.functional.softmax`.

    Parameters
    ----------
    dim : int, default=-1
        Dimension that sums to 1, or to 0 where everything is masked.
    eps : float, default=0.0
        Added to the denominator, in units of the largest term.

    Shape
    -----
    (*) and a mask of bool, broadcast to it, to (*), in [0, 1]. True takes part.

    Examples
    --------
    >>> import torch
    >>> from sknan.activations import MaskedSoftmax
    >>> mask = torch.tensor([[True, True, False], [False, False, False]])
    >>> MaskedSoftmax()(torch.zeros(2, 3), mask)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    def __init__(self, dim: int = -1, *, eps: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Softmax of the elements of ``x`` where ``mask`` is True."""
        return sf.softmax(x, self.dim, mask=mask, eps=self.eps)


class SafeLogSoftmax(_Activation):
    """Logarithm of the softmax, finite for infinite logits.

    See :func:`sknan.functional.log_softmax`.

    Parameters
    ----------
    dim : int, default=-1
        Dimension whose exponentials sum to 1.

    Shape
    -----
    (*) to (*), not positive.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the softmax of ``x``."""
        return sf.log_softmax(x, self.dim)


class SafeNormalize(_Activation):
    """Vectors brought to length 1; a vector of zeros stays one.

    See :func:`sknan.functional.normalize`.

    Parameters
    ----------
    dim : int, default=-1
        Dimension that makes a vector.
    eps : float or None, default=None
        Length up to which a vector counts as zero; None chooses by dtype.

    Shape
    -----
    (*) to (*), in [-1, 1].
    """

    def __init__(self, dim: int = -1, *, eps: float | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` over its length."""
        return sf.normalize(x, self.dim, eps=self.eps)


class SafeStandardize(_Activation):
    """Deviations from the mean in standard deviations; 0 where nothing varies.

    See :func:`sknan.functional.standardize`.

    Parameters
    ----------
    dim : int, default=-1
        Dimension to take together.
    eps : float or None, default=None
        Standard deviation up to which nothing counts as varying; None chooses by dtype.

    Shape
    -----
    (*) to (*).
    """

    def __init__(self, dim: int = -1, *, eps: float | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` less its mean, over its standard deviation."""
        return sf.standardize(x, self.dim, eps=self.eps)


# -- bounded -------------------------------------------------------------------------


class _Between(_Activation):
    """An activation whose output lies between two numbers."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"low must be less than high and both finite, got {low!r} and {high!r}."
            )
        self.low = low
        self.high = high

    def _spread(self, share: Tensor, dtype: torch.dtype) -> Tensor:
        """From [0, 1] to [low, high]."""
        # Two products: the distance alone may be more than the dtype holds.
        y = self.low * (1.0 - share) + self.high * share
        return narrow(within(y, self.low, self.high), dtype)


class BoundedSigmoid(_Between):
    r"""Sigmoid stretched to a range, :math:`l + (h - l)\,\sigma(x)`.

    For outputs that have a least and a greatest value: shares, grades, probabilities
    that must not reach 0 or 1.

    Parameters
    ----------
    low : float, default=0.0
        Least output.
    high : float, default=1.0
        Greatest output.

    Raises
    ------
    ValueError
        If the bounds are not finite or not in order.

    Shape
    -----
    (*) to (*), in [low, high].

    Examples
    --------
    >>> import torch
    >>> from sknan.activations import BoundedSigmoid
    >>> BoundedSigmoid(1.0, 5.0)(torch.tensor([-1e30, 0.0, float("inf")]))
    tensor([1., 3., 5.])
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(low, high)

    def forward(self, x: Tensor) -> Tensor:
        """Sigmoid of ``x``, stretched."""
        wide, _ = widen(x)
        return self._spread(torch.sigmoid(wide), x.dtype)


class BoundedTanh(_Between):
    r"""Hyperbolic tangent stretched to a range, :math:`c + w \tanh(x)`.

    :math:`c` is the middle of the range and :math:`w` half its width.

    Parameters
    ----------
    low : float, default=-1.0
        Least output.
    high : float, default=1.0
        Greatest output.

    Raises
    ------
    ValueError
        If the bounds are not finite or not in order.

    Shape
    -----
    (*) to (*), in [low, high].
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(low, high)

    def forward(self, x: Tensor) -> Tensor:
        """Hyperbolic tangent of ``x``, stretched."""
        wide, _ = widen(x)
        return self._spread(0.5 + 0.5 * torch.tanh(wide), x.dtype)


class SmoothClip(_Activation):
    r"""Bend large numbers to a limit on both sides, :math:`x / \sqrt{1 + (x / l)^2}`.

    See :func:`sknan.functional.smooth_clip`.

    Parameters
    ----------
    limit : float, default=3.0
        Positive; :math:`l`.

    Shape
    -----
    (*) to (*), in [-limit, limit].
    """

    def __init__(self, limit: float = 3.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """``x``, bent."""
        return sf.smooth_clip(x, self.limit)


class SoftClamp(_Activation):
    """Clamp that keeps a slope outside of its bounds.

    See :func:`sknan.functional.soft_clamp`.

    Parameters
    ----------
    low, high : float or None
        Bounds; None for none on that side.
    width : float or None, default=None
        Distance from a bound at which the bend begins; None is a quarter of the
        distance between the bounds, or 1 with one bound only.

    Shape
    -----
    (*) to (*), in [low, high].
    """

    def __init__(
        self, low: float | None, high: float | None, *, width: float | None = None
    ) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """``x``, bent."""
        return sf.soft_clamp(x, self.low, self.high, width=self.width)
