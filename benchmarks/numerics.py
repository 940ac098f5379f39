"""Time of the stable functions and losses, compared with those of torch.

    python -m benchmarks.numerics [--only softmax "loss mse"] [--json FILE]

Each measurement is forward and backward on a million float32 elements, on one thread.
The figures are medians of runs in turn. The ratio is the time of sknan divided by that
of the function of torch, or of the formula in torch operations if torch has none.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Ratio, compare, keep_freed_memory
from sknan import functional as sf
from sknan import losses as sl

N_ELEMENTS = 1_000_000
TIGHT = {
    "softmax",
    "loss cross_entropy",
    "loss binary_cross_entropy",
    "loss mse",
    "loss huber",
}

Function = Callable[..., Tensor]


def elementwise() -> Iterator[tuple[str, Function, Function, list[Tensor]]]:
    """Yield name, function, peer and inputs of the elementwise functions."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(N_ELEMENTS, generator=generator).clamp(0.01, 0.99)
    normal = torch.randn(N_ELEMENTS, generator=generator)
    other = torch.randn(N_ELEMENTS, generator=generator)
    for name in ("log", "log1p", "logit", "sqrt", "rsqrt", "reciprocal"):
        yield name, getattr(sf, name), getattr(torch, name), [uniform]
    for name in ("atanh", "asin", "acos"):
        yield name, getattr(sf, name), getattr(torch, name), [uniform]
    for name in ("exp", "expm1", "sigmoid"):
        yield name, getattr(sf, name), getattr(torch, name), [normal]
    yield "log_sigmoid", sf.log_sigmoid, F.logsigmoid, [normal]
    yield "softplus", sf.softplus, F.softplus, [normal]
    for p in (-1.0, 1 / 3, 2.0, 2.5):
        yield (
            f"power {p:.3g}",
            lambda x, p=p: sf.power(x, p),
            lambda x, p=p: torch.pow(x, p),
            [uniform],
        )
    yield "divide", sf.divide, torch.divide, [normal, uniform]
    yield "atan2", sf.atan2, torch.atan2, [normal, other]
    yield "hypot", sf.hypot, torch.hypot, [normal, other]


def by_row(function: Function, **options: object) -> Function:
    """Return the function applied over the last dimension."""
    return lambda *tensors: function(*tensors, dim=-1, **options)


def reductions() -> Iterator[tuple[str, Function, Function, list[Tensor]]]:
    """Yield name, function, peer and inputs of functions of the rows of a matrix."""
    generator = torch.Generator().manual_seed(1)
    side = math.isqrt(N_ELEMENTS)
    x = torch.randn(side, side, generator=generator)
    y = torch.randn(side, side, generator=generator)
    for name in ("softmax", "log_softmax", "logsumexp", "var", "std"):
        yield name, by_row(getattr(sf, name)), by_row(getattr(torch, name)), [x]
    yield "norm", by_row(sf.norm), by_row(torch.linalg.vector_norm), [x]
    yield "normalize", by_row(sf.normalize), by_row(F.normalize), [x]
    yield "standardize", by_row(sf.standardize), _standardize, [x]
    cosine = by_row(F.cosine_similarity)
    yield "cosine_similarity", by_row(sf.cosine_similarity), cosine, [x, y]
    yield "correlation", by_row(sf.correlation), _correlation, [x, y]
    distance = F.pairwise_distance
    yield "pairwise_distance", by_row(sf.pairwise_distance), distance, [x, y]


def losses() -> Iterator[tuple[str, Function, Function, list[Tensor]]]:
    """Yield name, loss, peer and inputs of the losses."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N_ELEMENTS, generator=generator)
    y = torch.randn(N_ELEMENTS, generator=generator)
    positive = y.abs() + 0.1
    logits = torch.randn(N_ELEMENTS // 10, 10, generator=generator)
    codes = torch.randint(0, 10, (N_ELEMENTS // 10,), generator=generator)
    soft = torch.softmax(logits.flip(0), 1)
    log_p = torch.log_softmax(logits, 1)
    yield "cross_entropy", sl.CrossEntropyLoss(), F.cross_entropy, [logits, codes]
    yield "nll", sl.NLLLoss(), F.nll_loss, [log_p, codes]
    yield "probability_nll", sl.ProbabilityNLLLoss(), _probability_nll, [soft, codes]
    yield "focal", sl.FocalLoss(), _focal, [logits, codes]
    binary = F.binary_cross_entropy_with_logits
    yield "binary_cross_entropy", sl.BCEWithLogitsLoss(), binary, [x, (y > 0).float()]
    yield "mse", sl.MSELoss(), F.mse_loss, [x, y]
    yield "rmse", sl.RMSELoss(), lambda x, y: F.mse_loss(x, y).sqrt(), [x, y]
    yield "mae", sl.L1Loss(), F.l1_loss, [x, y]
    yield "huber", sl.HuberLoss(), F.huber_loss, [x, y]
    yield "pseudo_huber", sl.PseudoHuberLoss(), _pseudo_huber, [x, y]
    yield "log_cosh", sl.LogCoshLoss(), lambda x, y: (x - y).cosh().log().mean(), [x, y]
    yield "quantile", sl.QuantileLoss(0.8), _pinball, [x, y]
    halves = [x.view(-1, 2), y[: N_ELEMENTS // 2].view(-1, 1)]
    yield "gaussian_nll", sl.GaussianNLLLoss(), _gaussian, halves
    yield "poisson", sl.PoissonNLLLoss(), F.poisson_nll_loss, [x, positive]
    yield "gamma", sl.GammaLoss(), _gamma, [x, positive]
    yield "tweedie", sl.TweedieLoss(), _tweedie, [x, positive]
    yield "mape", sl.MAPELoss(), lambda x, y: ((x - y) / y).abs().mean(), [x, positive]
    yield "smape", sl.SMAPELoss(), _smape, [x, positive]
    yield "msle", sl.MSLELoss(), _msle, [positive.flip(0), positive]
    yield "kl_div", sl.KLDivLoss("batchmean"), _divergence, [log_p, soft]
    square = [v.view(math.isqrt(N_ELEMENTS), -1) for v in (x, y)]
    yield "cosine", sl.CosineSimilarityLoss(), _cosine, square
    correlation = lambda x, y: 1 - _correlation(x, y)  # noqa: E731
    yield "correlation", sl.CorrelationLoss(), correlation, [x, y]


def _probability_nll(p: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(torch.log(p + 1e-7), y)


def _focal(z: Tensor, y: Tensor) -> Tensor:
    nll = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-nll)) ** 2 * nll).mean()


def _pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    return (torch.sqrt(1 + (x - y) ** 2) - 1).mean()


def _pinball(x: Tensor, y: Tensor) -> Tensor:
    missing = y - x
    return torch.maximum(0.8 * missing, -0.2 * missing).mean()


def _gaussian(z: Tensor, y: Tensor) -> Tensor:
    mean, raw = z.chunk(2, -1)
    return F.gaussian_nll_loss(mean, y, F.softplus(raw))


def _gamma(z: Tensor, y: Tensor) -> Tensor:
    return (y * torch.exp(-z) - 1 + z - torch.log(y)).mean()


def _tweedie(z: Tensor, y: Tensor) -> Tensor:
    return (2 * y * torch.exp(-0.5 * z) + 2 * torch.exp(0.5 * z) - 4 * y.sqrt()).mean()


def _smape(x: Tensor, y: Tensor) -> Tensor:
    return (2 * (x - y).abs() / (x.abs() + y.abs())).mean()


def _msle(x: Tensor, y: Tensor) -> Tensor:
    return (torch.log1p(x) - torch.log1p(y)).square().mean()


def _divergence(x: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(x, y, reduction="batchmean")


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(x, y, dim=-1)).mean()


def _standardize(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / x.std(-1, correction=0, keepdim=True)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    y = y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def measure(
    function: Function,
    peer: Function,
    tensors: list[Tensor],
    *,
    repeats: int,
    is_loss: bool,
) -> Ratio:
    """Return the times of forward and backward of a function and its peer."""
    # The target of a loss has no gradient.
    has_gradient = [i == 0 or not is_loss for i in range(len(tensors))]
    leaves = [
        x.clone().requires_grad_(has)
        for x, has in zip(tensors, has_gradient, strict=True)
    ]
    upstream = torch.ones_like(peer(*leaves))

    def passes_of(function: Function) -> Callable[[], object]:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            function(*leaves).backward(upstream)

        return run

    return compare(passes_of(function), passes_of(peer), repeats=repeats)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names to measure")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    found = {}
    print(f"{'function':<26}{'sknan ms':>9}{'torch ms':>10}{'ratio':>7}{'limit':>7}")
    functions = [(*case, False) for case in (*elementwise(), *reductions())]
    for name, function, peer, tensors, is_loss in (
        *functions,
        *((f"loss {name}", *case, True) for name, *case in losses()),
    ):
        if arguments.only and name not in arguments.only:
            continue
        ratio = measure(
            function, peer, tensors, repeats=arguments.repeats, is_loss=is_loss
        )
        limit = 1.25 if name in TIGHT else 2.0
        found[name] = {**ratio._asdict(), "ratio": ratio.value, "limit": limit}
        print(
            f"{name:<26}{ratio.ours_s * 1e3:>9.2f}{ratio.peer_s * 1e3:>10.2f}"
            f"{ratio.value:>7.2f}{limit:>7.2f}"
            f"{'' if ratio.value <= limit else '  above'}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
