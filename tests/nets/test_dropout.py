from __future__ import annotations

import pytest
import torch

from sknan.nets._dropout import DROPOUTS, Dropout, mask_function


@pytest.mark.parametrize("layer", DROPOUTS)
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.999])
def test_masks_have_a_mean_of_one_and_the_given_share_of_zeros(layer, rate):
    mask = torch.empty(4, 50_001)
    mask_function(layer(rate))(mask, rate, torch.Generator().manual_seed(0))
    share = (mask == 0).double().mean().item()
    assert share == pytest.approx(rate, abs=0.004)  # 4 standard errors
    kept = mask[mask > 0]
    assert kept.unique().tolist() == pytest.approx([1 / (1 - rate)], rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_layer_scales_the_units_and_their_gradients_by_one_mask(dtype):
    x = torch.ones(7, 5, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    output = Dropout(0.5)(x)
    output.sum().backward()
    assert output.dtype == dtype
    assert set(output.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(x.grad, output)


def test_other_layers_have_no_mask_and_a_rate_of_zero_draws_none():
    assert mask_function(torch.nn.ReLU()) is None
    before = torch.get_rng_state()
    x = torch.ones(3)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), before)
