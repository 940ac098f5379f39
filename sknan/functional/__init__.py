"""Tensor functions with finite values and gradients at the edge of their domain.

Each function equals its counterpart in torch inside a domain. Outside, the argument
counts as the nearest number inside, or as a limit that the domain just misses, and the
gradient is 0. The docstrings give the domains of the other dtypes.

===========================  =============================  ==========================
Function                     Domain in float32              Value outside
===========================  =============================  ==========================
``log(x)``                   x > 1.2e-38                    -87.3
``log1p(x)``                 x > -1 + 6e-8                  -16.6
``exp(x)``                   x < 88.7                       3.4e38
``expm1(x)``                 x < 88.7                       3.4e38
``logit(x)``                 1.2e-38 < x < 1 - 6e-8         -87.3 or 16.6
``sigmoid(x)``               all x
``log_sigmoid(x)``           finite x                       -3.4e38 or 0
``softplus(x)``              x < inf                        3.4e38
``smooth_clip(x, l)``        all x
``soft_clamp(x, l, h)``      between the knees              bounded, gradient above 0
``sqrt(x)``                  x > 1.2e-38                    0
``rsqrt(x)``                 x > 2.1e-26                    7.0e12
``reciprocal(x)``            abs(x) > 5.4e-20               0
``divide(x, y)``             abs(y) > 2.3e-10               0
..                           abs(x) < 1.8e19                quotient of the limited x
``power(x, p)``              power and gradient finite      power at the edge, or 0
``asin(x)``                  abs(x) < 1 - 6e-8              -pi/2 or pi/2
``acos(x)``                  abs(x) < 1 - 6e-8              pi or 0
``atanh(x)``                 abs(x) < 1 - 6e-8              -8.7 or 8.7
``atan2(y, x)``              a coordinate above 5.4e-20     torch's value at (0, 0)
``hypot(x, y)``              length > 1.5e-19               0
``softmax(x)``               abs(x) < 8.5e37                softmax of the limited x
``log_softmax(x)``           abs(x) < 8.5e37                log_softmax of the limited x
``logsumexp(x)``             abs(x) < 8.5e37                logsumexp of the limited x
``norm(x)``                  an element above 1.1e-19       0
``normalize(x)``             an element above 1.1e-19       0
``var(x)``                   more elements than correction  0
``std(x)``                   a deviation above 1.1e-19      0
``standardize(x)``           a deviation above 1.1e-19      0
``cosine_similarity(x, y)``  no vector zero                 0
``correlation(x, y)``        no variable constant           0
``pairwise_distance(x, y)``  a difference above 1.1e-19     0
===========================  =============================  ==========================

These properties hold for every function:

- A NaN in the input gives NaN in the output. The functions repair the edge of a domain,
  not the data.
- Infinities count as the largest finite number of the dtype, unless torch's limit there
  is finite.
- Value and gradient are finite for every other number. The second derivative is finite
  where torch's is. (That of the logarithm at 1e-38 is 1e76, which float32 cannot hold.)
- float16 and bfloat16 are computed in float32 and rounded once. The domains are those
  of the narrow dtype. Integers become floats, as in torch.
- Shape, device and dtype of the result are those of torch's function.
- Second derivatives, ``torch.func``, ``torch.compile`` and autocast are supported.

Arguments are limited, and results replaced, with single kernels that select elements
instead of multiplying them, in the forward and in the backward pass: an infinite
gradient at the edge is dropped and never becomes ``0 * inf``. On a CPU the smallest and
the largest element are read first, which costs a fraction of the repair. If all
elements are well inside the domain, torch's function is called directly.
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
    log_softmax,
    logsumexp,
    norm,
    normalize,
    pairwise_distance,
    softmax,
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
