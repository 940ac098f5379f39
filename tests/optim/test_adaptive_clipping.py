"""Adaptive clippers, compared with the papers that define them."""

from __future__ import annotations

import copy
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sknan.optim import (
    AGC,
    QuantileClip,
    ZScoreClip,
    resolve_adaptive_clip,
    stable_grad_norm,
)


def sparse_gradient(rows=(0, 0, 2), scale=1.0):
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    weights = scale * torch.arange(1.0, 1.0 + 3 * len(rows)).reshape(-1, 3)
    (embedding(torch.tensor(rows)) * weights).sum().backward()
    return embedding.weight, embedding.weight.grad


def units(tensor):
    return tensor.double().reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)


def agc_by_the_paper(weight, grad, clipping, eps):
    """Evaluate equation 3 of Brock et al. for each unit in float64."""
    clipped = units(grad).clone()
    for unit, unit_grad in zip(units(weight), clipped, strict=True):
        limit = clipping * max(math.hypot(*unit.tolist()), eps)
        length = math.hypot(*unit_grad.tolist())
        if length > limit:
            unit_grad.mul_(limit / length)
    return clipped.reshape(grad.shape)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("clipping", [0.01, 1e-14])
def test_agc_agrees_with_the_paper_at_every_scale(scale, clipping):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (4,), (), (2, 3, 2), (0, 2)]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    weights[0][1] = 0.0
    grads = [torch.randn(shape, generator=generator) * scale for shape in shapes]
    grads[0][2] *= 1e-6
    grads[3][1] = 0.0
    expected = [
        agc_by_the_paper(weight, grad, clipping, 1e-3)
        for weight, grad in zip(weights[:-1], grads[:-1], strict=True)
    ]
    norm = stable_grad_norm(grads)
    coefficient = AGC(clipping=clipping)(weights, grads, norm)
    for grad, reference in zip(grads[:-1], expected, strict=True):
        torch.testing.assert_close(grad.double(), reference, rtol=1e-6, atol=1e-44)
    if scale == 1e-30:
        assert coefficient == 1.0
    else:
        assert norm * coefficient == pytest.approx(stable_grad_norm(grads), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_agc_does_not_spread_a_non_finite_entry_to_other_units(scale):
    weight = torch.ones(4, 2)
    grad = torch.tensor([[1.0, 2.0], [math.nan, 2.0], [math.inf, 2.0], [3.0, 4.0]])
    grad *= scale
    AGC(clipping=0.1)._clip_units(weight, grad, 1e3 * scale)
    assert torch.isfinite(grad[[0, 3]]).all()
    assert units(grad)[0].norm().item() == pytest.approx(0.1 * math.sqrt(2), rel=1e-6)
    assert math.isnan(grad[1, 0])


def test_agc_clips_float16():
    weight, grad = torch.ones(2, 4).half(), torch.full((2, 4), 300.0).half()
    assert AGC(clipping=0.5)([weight], [grad], 300 * math.sqrt(8)) < 1.0
    assert torch.equal(grad, torch.full((2, 4), 0.5).half())


def test_agc_clips_the_rows_of_a_sparse_gradient():
    weight, grad = sparse_gradient()
    expected = agc_by_the_paper(weight.detach(), grad.to_dense(), 0.01, 1e-3)
    norm = stable_grad_norm([grad])
    coefficient = AGC()([weight], [grad], norm)
    torch.testing.assert_close(
        grad.to_dense().double(), expected, rtol=1e-6, atol=1e-12
    )
    assert coefficient == pytest.approx(stable_grad_norm([grad]) / norm, rel=1e-6)


def test_quantile_clip_agrees_with_numpy():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(sigma=2.0, size=200)
    clip = QuantileClip(quantile=0.8, window=30, min_history=5)
    for i, norm in enumerate(norms):
        seen = norms[max(0, i - 30) : i]
        expected = np.quantile(seen, 0.8) if len(seen) >= 5 else math.inf
        assert clip.threshold(norm) == pytest.approx(expected, rel=1e-12)
        clip.record(float(norm))


def test_quantile_clip_with_a_history_of_one():
    clip = QuantileClip(min_history=1, window=1)
    clip.record(2.0)
    assert clip.threshold(9.0) == 2.0
    clip.record(3.0)
    assert clip.threshold(9.0) == 3.0


def test_zscore_clip_agrees_with_the_paper():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(sigma=0.3, size=200)
    norms[60::40] *= 30.0
    clip = ZScoreClip(n_warmup=10)
    mean, var = norms[:10].mean(), norms[:10].var()
    for norm in norms[:10]:
        assert clip.threshold(norm) == math.inf
        clip.record(float(norm))
    n_clipped = 0
    for norm in norms[10:]:
        z = (norm - mean) / math.sqrt(var)
        limit = mean + 2.5**2 / z * math.sqrt(var) if z > 2.5 else math.inf
        assert clip.threshold(norm) == pytest.approx(limit, rel=1e-9)
        clip.record(float(norm))
        effective = min(norm, limit)
        n_clipped += z > 2.5
        mean = 0.97 * mean + 0.03 * effective
        var = 0.97 * var + 0.03 * (effective - mean) ** 2
    assert n_clipped >= 4


HISTORY_CLIPS = [
    QuantileClip(quantile=0.5, min_history=3),
    ZScoreClip(n_warmup=3),
]


@pytest.mark.parametrize("prototype", HISTORY_CLIPS)
@given(norms=st.lists(st.floats(min_value=0.0), max_size=40), after=st.floats(0.0, 1e3))
@example(norms=[sys.float_info.max] * 3, after=0.0)
def test_non_finite_norms_are_ignored(prototype, norms, after):
    with_faults, without = copy.deepcopy(prototype), copy.deepcopy(prototype)
    for norm in norms:
        with_faults.record(norm)
        with_faults.record(math.nan)
        if math.isfinite(norm):
            without.record(norm)
    assert with_faults.threshold(after) == without.threshold(after)
    assert not math.isnan(without.threshold(after))


@pytest.mark.parametrize("prototype", HISTORY_CLIPS)
def test_a_spike_is_clipped_to_the_threshold(prototype):
    clip = copy.deepcopy(prototype)
    for norm in (1.0, 1.2, 0.9):
        grads = [torch.tensor([norm])]
        assert clip(grads, grads, norm) == 1.0
        assert torch.equal(grads[0], torch.tensor([norm]))
    threshold = clip.threshold(100.0)
    grads = [torch.tensor([100.0])]
    assert clip(grads, grads, 100.0) == threshold / 100.0
    assert grads[0].item() == pytest.approx(threshold, rel=1e-6)
    assert 0.9 < threshold < 1.3
    clip.reset()
    assert clip.threshold(100.0) == math.inf


@pytest.mark.parametrize("prototype", HISTORY_CLIPS)
def test_steps_without_a_gradient_do_not_stop_learning(prototype):
    clip = copy.deepcopy(prototype)
    for _ in range(5):
        assert clip([], [], 0.0) == 1.0
    grads = [torch.tensor([2.0])]
    assert clip(grads, grads, 2.0) == 1.0
    assert grads[0].item() == 2.0


CLIPPERS = [AGC(), QuantileClip(min_history=2), ZScoreClip(n_warmup=2)]


@pytest.mark.parametrize("clip", [copy.deepcopy(clip) for clip in CLIPPERS])
@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_gradients_of_a_non_finite_norm_do_not_change(clip, norm):
    weight, grads = torch.ones(2), [torch.tensor([5.0, norm])]
    assert clip([weight], grads, norm) == 1.0
    np.testing.assert_array_equal(grads[0], [5.0, norm])


def pickled_and_back(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("prototype", CLIPPERS)
@pytest.mark.parametrize("make_copy", [copy.deepcopy, pickled_and_back])
def test_a_copy_continues_like_the_original(prototype, make_copy):
    original = copy.deepcopy(prototype)
    weight = torch.ones(1)
    for norm in (1.0, 1.5, 1.1):
        original([weight], [torch.tensor([norm])], norm)
    copied = make_copy(original)
    assert copied == original
    for norm in (50.0, 2.0, 60.0):
        grads, copied_grads = [torch.tensor([norm])], [torch.tensor([norm])]
        assert copied([weight], copied_grads, norm) == original([weight], grads, norm)
        assert torch.equal(copied_grads[0], grads[0])


def test_names_and_numbers_give_clippers():
    assert resolve_adaptive_clip(None) is None
    assert resolve_adaptive_clip("agc") == AGC(clipping=0.01, eps=1e-3)
    assert resolve_adaptive_clip("quantile") == QuantileClip(0.9, 500, 20)
    assert resolve_adaptive_clip("zscore") == ZScoreClip(2.5, 0.97, 25)
    assert resolve_adaptive_clip(0.05) == AGC(clipping=0.05)
    assert resolve_adaptive_clip(np.float32(0.5)) == AGC(clipping=0.5)


def test_a_clipper_given_as_parameter_does_not_change():
    given_clip = QuantileClip(quantile=0.5, min_history=1)
    given_clip.record(1.0)
    clip = resolve_adaptive_clip(given_clip)
    assert clip.threshold(9.0) == math.inf
    clip.record(3.0)
    assert given_clip.threshold(9.0) == 1.0


def test_the_message_about_an_unknown_name_suggests_the_closest_one():
    with pytest.raises(ValueError, match="Unknown") as caught:
        resolve_adaptive_clip("z-score")
    assert str(caught.value) == (
        "Unknown adaptive_clip 'z-score'. Did you mean 'zscore'? Known names: 'agc', "
        "'quantile', 'zscore'."
    )


@pytest.mark.parametrize("unfit", [True, [1.0], AGC])
def test_an_object_that_is_no_clipper_is_refused(unfit):
    with pytest.raises(TypeError) as caught:
        resolve_adaptive_clip(unfit)
    assert str(caught.value) == (
        "adaptive_clip must be None, a name, a number or an object such as "
        f"QuantileClip(), got {unfit!r}."
    )


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (AGC, {"clipping": 0.0}, "clipping must be above 0 and finite, got 0.0."),
        (AGC, {"clipping": math.inf}, "clipping must be above 0 and finite, got inf."),
        (AGC, {"eps": math.nan}, "eps must be above 0 and finite, got nan."),
        (
            QuantileClip,
            {"quantile": 1.0},
            "quantile must be between 0 and 1, got 1.0.",
        ),
        (
            QuantileClip,
            {"window": 10},
            "window must be at least min_history=20, got 10.",
        ),
        (
            QuantileClip,
            {"min_history": 0},
            "min_history must be above 0 and finite, got 0.",
        ),
        (
            QuantileClip,
            {"window": "all"},
            "window must be at least min_history=20, got 'all'.",
        ),
        (AGC, {"clipping": "1"}, "clipping must be above 0 and finite, got '1'."),
        (ZScoreClip, {"alpha": 1.5}, "alpha must be between 0 and 1, got 1.5."),
        (ZScoreClip, {"n_warmup": 0}, "n_warmup must be above 0 and finite, got 0."),
        (
            ZScoreClip,
            {"z_threshold": 0},
            "z_threshold must be above 0 and finite, got 0.",
        ),
    ],
)
def test_clippers_refuse_parameters_out_of_range(make, options, message):
    with pytest.raises(ValueError, match="must be") as caught:
        make(**options)
    assert str(caught.value) == message
