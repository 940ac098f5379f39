"""What the stable functions and losses cost against torch's own, unsafe ones.

    python -m benchmarks.numerics [--only softmax log] [--repeats 31] [--json FILE]

Forward and backward on a million float32 elements, one thread, medians of runs in turn.
A ratio of 1 is the time of torch's own function.
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

from benchmarks.timing import Ratio, compare
from sknan import functional as sf

N_ELEMENTS = 1_000_000
TIGHT = {"softmax", "cross_entropy", "binary_cross_entropy", "mse", "huber"}

Function = Callable[..., Tensor]


def limit_of(name: str) -> float:
    """Greatest ratio that is allowed."""
    return 1.25 if name in TIGHT else 2.0


def elementwise() -> Iterator[tuple[str, Function, Function, list[Tensor]]]:
    """Functions of a flat tensor, or of two."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(N_ELEMENTS, generator=generator)
    uniform = uniform.clamp(0.01, 0.99)
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
    """The function over the last dimension."""
    return lambda *tensors: function(*tensors, dim=-1, **options)


def reductions() -> Iterator[tuple[str, Function, Function, list[Tensor]]]:
    """Functions of the rows of a square matrix, or of two."""
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


def _standardize(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / x.std(-1, correction=0, keepdim=True)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    y = y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def measure(
    ours: Function, theirs: Function, tensors: list[Tensor], repeats: int
) -> Ratio:
    """Forward and backward of both."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in tensors]
    shape = theirs(*leaves)
    upstream = torch.ones_like(shape)

    def run(function: Function) -> Callable[[], object]:
        def once() -> None:
            for leaf in leaves:
                leaf.grad = None
            function(*leaves).backward(upstream)

        return once

    return compare(run(ours), run(theirs), repeats=repeats)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names to measure")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    print(f"{'function':<24}{'ours ms':>9}{'torch ms':>10}{'ratio':>7}{'limit':>7}")
    for name, ours, theirs, tensors in (*elementwise(), *reductions()):
        if arguments.only and name not in arguments.only:
            continue
        ratio = measure(ours, theirs, tensors, arguments.repeats)
        limit = limit_of(name)
        found[name] = {**ratio._asdict(), "ratio": ratio.value, "limit": limit}
        print(
            f"{name:<24}{ratio.ours_s * 1e3:>9.2f}{ratio.theirs_s * 1e3:>10.2f}"
            f"{ratio.value:>7.2f}{limit:>7.2f}"
            f"{'' if ratio.value <= limit else '  above'}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
