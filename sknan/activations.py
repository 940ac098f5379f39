"""Modules that apply the functions of :mod:`sknan.functional`, without parameters.

Safe activations have finite values and gradients at the edge of their domain. Bounded
activations have an output in a given range. None has weights. An activation of one
tensor returns a tensor of the same shape and dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sknan import functional as sf
from sknan._utils.validation import check_bounds
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
    """Base class of activations, with the parameters in the repr."""

    def extra_repr(self) -> str:
        """Return the parameters as they are passed to the constructor."""
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        shown.pop("training")
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class _Elementwise(_Activation):
    """Base class of activations that apply one function to each element."""

    _function: staticmethod[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element of ``x``."""
        return self._function(x)


class SafeLog(_Elementwise):
    """Logarithm that is finite everywhere; see :func:`sknan.functional.log`."""

    _function = staticmethod(sf.log)


class SafeLog1p(_Elementwise):
    """Logarithm of 1 + x, finite everywhere; see :func:`sknan.functional.log1p`."""

    _function = staticmethod(sf.log1p)


class SafeExp(_Elementwise):
    """Exponential without overflow; see :func:`sknan.functional.exp`."""

    _function = staticmethod(sf.exp)


class SafeExpm1(_Elementwise):
    """Exponential minus 1 without overflow; see :func:`sknan.functional.expm1`."""

    _function = staticmethod(sf.expm1)


class SafeSqrt(_Elementwise):
    """Square root that is 0 with gradient 0 at zero and below.

    See :func:`sknan.functional.sqrt`. The output is not negative.

    Examples
    --------
    >>> import torch
    >>> from sknan.activations import SafeSqrt
    >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> SafeSqrt()(x).sum().backward()
    >>> x.grad
    tensor([0.0000, 0.2500])
    """

    _function = staticmethod(sf.sqrt)


class SafeRsqrt(_Elementwise):
    """Reciprocal square root, finite everywhere; see :func:`sknan.functional.rsqrt`."""

    _function = staticmethod(sf.rsqrt)


class SafeReciprocal(_Elementwise):
    """Reciprocal that is 0 for zero; see :func:`sknan.functional.reciprocal`."""

    _function = staticmethod(sf.reciprocal)


class SafeLogit(_Elementwise):
    """Inverse sigmoid, finite everywhere; see :func:`sknan.functional.logit`."""

    _function = staticmethod(sf.logit)


class SafeLogSigmoid(_Elementwise):
    """Finite logarithm of the sigmoid; see :func:`sknan.functional.log_sigmoid`."""

    _function = staticmethod(sf.log_sigmoid)


class SafeSoftplus(_Elementwise):
    """Softplus, finite at infinity; see :func:`sknan.functional.softplus`."""

    _function = staticmethod(sf.softplus)


class SafeAtanh(_Elementwise):
    """Finite inverse hyperbolic tangent; see :func:`sknan.functional.atanh`."""

    _function = staticmethod(sf.atanh)


class SafeAsin(_Elementwise):
    """Inverse sine with finite gradient; see :func:`sknan.functional.asin`."""

    _function = staticmethod(sf.asin)


class SafeAcos(_Elementwise):
    """Inverse cosine with finite gradient; see :func:`sknan.functional.acos`."""

    _function = staticmethod(sf.acos)


class SafePower(_Activation):
    """Power with a fixed exponent, finite for every number.

    See :func:`sknan.functional.power`.

    Parameters
    ----------
    exponent : float
        Finite exponent.
    """

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` to the power of the exponent."""
        return sf.power(x, self.exponent)


class SafeDivide(_Activation):
    """Quotient that is 0 where the denominator is zero.

    See :func:`sknan.functional.divide`.

    Parameters
    ----------
    eps : float or None, default=None
        Largest absolute value of a denominator that counts as zero; None is 0.

    Shape
    -----
    (*) and (*), broadcast, to (*).
    """

    def __init__(self, eps: float | None = None) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Divide the numerator by the denominator."""
        return sf.divide(numerator, denominator, eps=self.eps)


class _Softmax(_Activation):
    """Base class of softmax activations."""

    def __init__(self, dim: int = -1, *, eps: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps


class SafeSoftmax(_Softmax):
    """Softmax that is defined for infinite logits.

    See :func:`sknan.functional.softmax`. The output is in [0, 1].

    Parameters
    ----------
    dim : int, default=-1
        Dimension that sums to 1.
    eps : float, default=0.0
        Term added to the denominator, in units of its largest term.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the softmax of ``x``."""
        return sf.softmax(x, self.dim, eps=self.eps)


class MaskedSoftmax(_Softmax):
    """Softmax over the elements that a mask includes; zeros if it includes none.

    See :func:`sknan.functional.softmax`.

    Parameters
    ----------
    dim : int, default=-1
        Dimension that sums to 1, or to 0 if all its elements are excluded.
    eps : float, default=0.0
        Term added to the denominator, in units of its largest term.

    Shape
    -----
    (*) and a mask of bool, broadcast to it, to (*), in [0, 1]. True includes.

    Examples
    --------
    >>> import torch
    >>> from sknan.activations import MaskedSoftmax
    >>> mask = torch.tensor([[True, True, False], [False, False, False]])
    >>> MaskedSoftmax()(torch.zeros(2, 3), mask)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Compute the softmax of the elements of ``x`` where ``mask`` is True."""
        return sf.softmax(x, self.dim, mask=mask, eps=self.eps)


class SafeLogSoftmax(_Activation):
    """Logarithm of the softmax that is finite for infinite logits.

    See :func:`sknan.functional.log_softmax`. The output is not positive.

    Parameters
    ----------
    dim : int, default=-1
        Dimension whose exponentials sum to 1.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logarithm of the softmax of ``x``."""
        return sf.log_softmax(x, self.dim)


class _Scaling(_Activation):
    """Base class of activations that divide by a length or a standard deviation."""

    def __init__(self, dim: int = -1, *, eps: float | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps


class SafeNormalize(_Scaling):
    """Vectors scaled to length 1; a zero vector stays zero.

    See :func:`sknan.functional.normalize`. The output is in [-1, 1].

    Parameters
    ----------
    dim : int, default=-1
        Dimension of a vector.
    eps : float or None, default=None
        Largest length that counts as zero; None is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Divide ``x`` by its length."""
        return sf.normalize(x, self.dim, eps=self.eps)


class SafeStandardize(_Scaling):
    """Deviations from the mean in standard deviations; 0 if all elements are equal.

    See :func:`sknan.functional.standardize`.

    Parameters
    ----------
    dim : int, default=-1
        Dimension to reduce.
    eps : float or None, default=None
        Largest standard deviation that counts as zero; None is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the mean of ``x`` and divide by the standard deviation."""
        return sf.standardize(x, self.dim, eps=self.eps)


class _Bounded(_Activation):
    """Base class of activations whose output is between two bounds."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        check_bounds(low, high)
        self.low = low
        self.high = high

    def _rescaled(self, share: Tensor, dtype: torch.dtype) -> Tensor:
        """Map [0, 1] to [low, high]."""
        # Two products, because high - low may exceed the range of the dtype.
        y = self.low * (1.0 - share) + self.high * share
        return narrow(within(y, self.low, self.high), dtype)


class BoundedSigmoid(_Bounded):
    r"""Sigmoid scaled to a range, :math:`l + (h - l)\,\sigma(x)`.

    It is for outputs with a smallest and a largest possible value: fractions, grades,
    probabilities that must not reach 0 or 1.

    Parameters
    ----------
    low : float, default=0.0
        Smallest output.
    high : float, default=1.0
        Largest output.

    Raises
    ------
    ValueError
        If the bounds are not finite or not in order.

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
        """Compute the scaled sigmoid of ``x``."""
        wide, _ = widen(x)
        return self._rescaled(torch.sigmoid(wide), x.dtype)


class BoundedTanh(_Bounded):
    r"""Hyperbolic tangent scaled to a range, :math:`c + w \tanh(x)`.

    :math:`c` is the middle of the range and :math:`w` half its width.

    Parameters
    ----------
    low : float, default=-1.0
        Smallest output.
    high : float, default=1.0
        Largest output.

    Raises
    ------
    ValueError
        If the bounds are not finite or not in order.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(low, high)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scaled hyperbolic tangent of ``x``."""
        wide, _ = widen(x)
        return self._rescaled(0.5 + 0.5 * torch.tanh(wide), x.dtype)


class SmoothClip(_Activation):
    r"""Smooth clipping to a limit on both sides, :math:`x / \sqrt{1 + (x / l)^2}`.

    See :func:`sknan.functional.smooth_clip`. The output is in [-limit, limit].

    Parameters
    ----------
    limit : float, default=3.0
        Positive limit of the absolute value, :math:`l`.
    """

    def __init__(self, limit: float = 3.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """Clip ``x`` smoothly."""
        return sf.smooth_clip(x, self.limit)


class SoftClamp(_Activation):
    """Smooth clamp to two bounds, with a gradient outside of them.

    See :func:`sknan.functional.soft_clamp`. The output is in [low, high].

    Parameters
    ----------
    low, high : float or None
        Bounds; None for no bound on that side.
    width : float or None, default=None
        Distance from a bound at which the clamping begins. None is a quarter of the
        distance between the bounds, or 1 if there is only one bound.
    """

    def __init__(
        self, low: float | None, high: float | None, *, width: float | None = None
    ) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Clamp ``x`` smoothly."""
        return sf.soft_clamp(x, self.low, self.high, width=self.width)
