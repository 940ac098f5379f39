"""Steps by the kernel of Adam, compared with torch's optimizers."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sknan.optim._fused_adam import step_with

FUSED = {
    "AdamW": (torch.optim.AdamW, {}),
    "Adam": (torch.optim.Adam, {}),
    "decay": (torch.optim.AdamW, {"weight_decay": 0.3}),
    "coupled decay": (torch.optim.Adam, {"weight_decay": 0.3}),
    "other betas": (torch.optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3}),
    "maximize": (torch.optim.AdamW, {"maximize": True}),
}
OTHERS = {
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "rate as a tensor": (torch.optim.AdamW, {"lr": torch.tensor(1e-2)}),
    "not fused": (torch.optim.AdamW, {"fused": False}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "RMSprop": (torch.optim.RMSprop, {"fused": None}),
}


def module_of(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).to(dtype)


def optimizer_of(kind, options, module):
    options = {"lr": 1e-2, "fused": True, **options}
    if options["fused"] is None:
        del options["fused"]
    groups = [
        {"params": module[0].parameters()},
        {"params": module[1].parameters(), "lr": 1e-3},
    ]
    return kind(groups, **options)


def loss_of(module, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = module[0].weight.dtype
    X = torch.randn(8, 3, generator=generator, dtype=dtype)
    return module(X).square().mean()


def train(step, kind, options, dtype=torch.float32, n_steps=5):
    """Train a module; one of the steps lacks the gradient of one parameter."""
    module = module_of(dtype)
    optimizer = optimizer_of(kind, options, module)
    for seed in range(n_steps):

        def closure(seed=seed):
            optimizer.zero_grad()
            loss = loss_of(module, seed)
            loss.backward()
            if seed == 3:
                module[1].bias.grad = None
            return loss

        step(optimizer, closure)
    return module, optimizer


def torch_step(optimizer, closure):
    optimizer.step(closure)


def assert_equal(found, expected):
    modules, optimizers = zip(found, expected, strict=True)
    parameters = zip(*(module.parameters() for module in modules), strict=True)
    assert all(torch.equal(*pair) for pair in parameters)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    for number, state in states[1].items():
        for name, value in state.items():
            assert torch.equal(states[0][number][name], value)


@pytest.mark.parametrize(("kind", "options"), FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_alone_is_bitwise_identical(kind, options, dtype):
    assert_equal(
        train(step_with, kind, options, dtype), train(torch_step, kind, options, dtype)
    )


@pytest.mark.parametrize(("kind", "options"), OTHERS.values(), ids=OTHERS)
def test_every_other_optimizer_uses_its_step_method(kind, options):
    assert_equal(train(step_with, kind, options), train(torch_step, kind, options))


def test_an_optimizer_that_needs_several_evaluations_gets_the_closure():
    def run(step):
        module = module_of()
        optimizer = torch.optim.LBFGS(module.parameters(), max_iter=4)
        losses = []

        def closure():
            optimizer.zero_grad()
            loss = loss_of(module, 0)
            loss.backward()
            losses.append(loss.item())
            return loss

        step(optimizer, closure)
        return losses

    assert run(step_with) == run(torch_step)
    assert len(run(step_with)) > 1


def test_hooks_are_called():
    called = []
    module = module_of()
    optimizer = optimizer_of(torch.optim.AdamW, {}, module)

    def step():
        called.clear()
        step_with(optimizer, lambda: loss_of(module, 0).backward())
        return list(called)

    assert step() == []
    before = optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: called.append("after"))
    assert step() == ["before", "after"]
    before.remove()
    after.remove()
    of_all = register_optimizer_step_post_hook(lambda *_: called.append("all"))
    try:
        assert step() == ["all"]
    finally:
        of_all.remove()


def test_a_torch_scheduler_counts_the_steps(recwarn):
    module = module_of()
    optimizer = optimizer_of(torch.optim.AdamW, {}, module)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    for _ in range(3):
        step_with(optimizer, lambda: loss_of(module, 0).backward())
        scheduler.step()
    assert not recwarn.list  # torch warns if the scheduler steps before the optimizer


def test_a_loaded_state_is_used():
    module, optimizer = train(step_with, *FUSED["AdamW"])
    duplicate = copy.deepcopy((module, optimizer))
    duplicate[1].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module_, optimizer_ in ((module, optimizer), duplicate):
        optimizer_.zero_grad()
        step_with(optimizer_, lambda module=module_: loss_of(module, 9).backward())
    assert_equal((module, optimizer), duplicate)
