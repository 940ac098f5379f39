"""Tensor functions with finite values and gradients at the edge of their domain.

Each function has torch's value and gradient wherever torch's are finite, in float16,
bfloat16, float32 and float64. Elsewhere the value is the nearest finite number, and the
gradient is 0. ``functional.norm`` and other functions of squares are exact where
torch's squares underflow or overflow, too.

===========================  =============================  ==========================
Function                     Not finite in torch            Value in float32
===========================  =============================  ==========================
``log(x)``                   x <= 0                         -103.3
``log1p(x)``                 x <= -1                        -16.6
``exp(x)``, ``expm1(x)``     x > 88.7                       3.4e38
``logit(x)``                 x <= 0, x >= 1                 -103.3, 16.6
``sigmoid(x)``
``log_sigmoid(x)``           x = -inf                       -3.4e38
``softplus(x)``              x = inf                        3.4e38
``smooth_clip(x, l)``        (not in torch)                 within -l and l
``soft_clamp(x, l, h)``      (not in torch)                 within l and h
``sqrt(x)``                  x <= 0 (gradient at 0)         0
``rsqrt(x)``                 x <= 0                         2.7e22
``reciprocal(x)``            x = 0                          0
``divide(x, y)``             y = 0                          0
``power(x, p)``              x < 0, p not an integer        0, or as at x = 0
..                           x = 0, p < 0                   1.4e-45 to the power of p
``asin(x)``, ``acos(x)``     abs(x) >= 1                    that of -1 or 1
``atanh(x)``                 abs(x) >= 1                    -8.7 or 8.7
``atan2(y, x)``              gradient near (0, 0)           torch's
``hypot(x, y)``              gradient at (0, 0)             0
``softmax(x)``               inf, only -inf                 equal shares
``log_softmax(x)``           inf, only -inf                 logarithm of equal shares
``logsumexp(x)``             inf, only -inf                 3.4e38, -3.4e38
``norm(x)``                  (squares)                      exact
``normalize(x)``             x = 0                          0
``var(x)``                   too few elements               0
``std(x)``                   gradient at 0                  0
``standardize(x)``           equal elements                 0
``cosine_similarity(x, y)``  a vector is zero               0
``correlation(x, y)``        a variable is constant         0
``pairwise_distance(x, y)``  (squares)                      exact
===========================  =============================  ==========================

These properties hold for every function:

- A NaN in the input gives NaN in the output. The functions repair the edge of a domain,
  not the data.
- Infinities count as the largest finite number of the dtype, unless torch's limit there
  is finite. A value that overflows is the largest number, with gradient 0.
- Value and gradient are finite for every other number. A gradient that overflows is 0
  (in float16 and bfloat16: the largest number). The second derivative is finite where
  torch's is. (That of the logarithm at 1e-38 is 1e76, which float32 cannot hold.)
- float16 and bfloat16 are computed in float32 and rounded once. Integers become floats,
  as in torch. Complex numbers raise TypeError.
- Shape, device and dtype of the result are those of torch's function.
- Second derivatives, ``torch.func``, ``torch.compile`` and autocast are supported.

On a CPU the smallest and the largest element are read first. If all elements are well
inside the domain, torch's function is called directly.
"""

from sknan.functional._elementwise import (
    exp,
    expm1,
    log,
    log1p,
    log_sigmoid,
    logit,
    sigmoid,
    smooth_clip,
    soft_clamp,
    softplus,
)
from sknan.functional._reductions import (
    correlation,
    cosine_similarity,
    norm,
    normalize,
    pairwise_distance,
    standardize,
    std,
    var,
)
from sknan.functional._roots import (
    acos,
    asin,
    atan2,
    atanh,
    divide,
    hypot,
    power,
    reciprocal,
    rsqrt,
    sqrt,
)
from sknan.functional._softmax import log_softmax, logsumexp, softmax

__all__ = [
    "acos",
    "asin",
    "atan2",
    "atanh",
    "correlation",
    "cosine_similarity",
    "divide",
    "exp",
    "expm1",
    "hypot",
    "log",
    "log1p",
    "log_sigmoid",
    "log_softmax",
    "logit",
    "logsumexp",
    "norm",
    "normalize",
    "pairwise_distance",
    "power",
    "reciprocal",
    "rsqrt",
    "sigmoid",
    "smooth_clip",
    "soft_clamp",
    "softmax",
    "softplus",
    "sqrt",
    "standardize",
    "std",
    "var",
]
