"""Training steps of the user's own under guard."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from skorch import NeuralNet, NeuralNetRegressor
from skorch.dataset import ValidSplit, unpack_data
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sknan import DivergenceWarning, GuardedNetRegressor, GuardMixin
from sknan.nets.recovery.step_loss import loss_of

X = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]


class MLP(nn.Module):
    def __init__(self, n_outputs=1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, n_outputs))

    def forward(self, x):
        return self.body(x)


class RootOfFirst(MLP):
    def forward(self, x):
        return self.body(torch.cat([torch.sqrt(x[:, :1]), x[:, 1:]], 1))


def trained(cls, module=MLP, inputs=X, **options):
    torch.manual_seed(0)
    defaults = {
        "criterion": nn.MSELoss,
        "optimizer": torch.optim.SGD,
        "lr": 0.05,
        "max_epochs": 4,
        "batch_size": 20,
        "train_split": None,
        "verbose": 0,
    }
    return cls(module, **{**defaults, **options}).fit(inputs, Y)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()])


def with_a_bad_row():
    inputs = np.abs(X) + 0.1
    inputs[33, 0] = -1.0
    return inputs


class Accumulating:
    """A step of the optimizer after each four batches."""

    n_steps = 0

    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        if len(self.history[-1, "batches"]) % 4 == 0:
            self.n_steps += 1
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


class Plain(Accumulating, NeuralNetRegressor):
    pass


class Behind(GuardMixin, Plain):
    pass


class Before(Accumulating, GuardedNetRegressor):
    pass


@pytest.mark.parametrize("cls", [Behind, Before])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_accumulated_gradients_give_the_bits_of_skorch(cls, optimizer):
    net = trained(cls, optimizer=optimizer)
    plain = trained(Plain, optimizer=optimizer)
    assert torch.equal(weights(net), weights(plain))
    assert net.n_steps == plain.n_steps == 8
    assert net.history[:, "train_loss"] == plain.history[:, "train_loss"]
    assert net.nonfinite_reports_ == []


@pytest.mark.parametrize("cls", [Behind, Before])
def test_a_bad_row_among_accumulated_gradients_is_left_out(cls):
    with pytest.warns(DivergenceWarning) as caught:
        net = trained(cls, RootOfFirst, with_a_bad_row())
    assert "Row 33 was left out of steps." in str(caught[0].message)
    first = net.nonfinite_reports_[0]
    assert (first.operation, first.rows, first.columns) == ("aten.sqrt", (33,), (0,))
    assert bool(torch.isfinite(weights(net)).all())
    assert net.n_steps == 8


@pytest.mark.parametrize("lr", [1e3, 1e20])
def test_a_rate_that_is_too_high_for_accumulated_gradients_is_lowered(lr):
    # Gradients from before a roll back would make the next step as long again.
    with pytest.warns(DivergenceWarning, match="it went on with lr="):
        net = trained(Before, lr=lr, max_epochs=20)
    assert net.effective_lr_ < 1.0
    assert net.score(X, Y) > 0.8  # 0.95 to 0.99 at learning rates of 0.01 to 1


class Counting(GuardedNetRegressor):
    """A step of skorch, and a count."""

    n_calls = 0

    def train_step(self, batch, **fit_params):
        self.n_calls += 1
        return super().train_step(batch, **fit_params)


# LBFGS of torch 2.8 warns of the loss that a step of skorch returns.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS]
)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1, "lr_schedule": "cosine"}])
def test_a_step_that_calls_that_of_skorch_is_guarded_in_it(optimizer, options):
    options = {"optimizer": optimizer, "max_epochs": 1, **options}
    net = trained(Counting, **options)
    expected = trained(GuardedNetRegressor, **options)
    assert torch.equal(weights(net), weights(expected))
    assert net.n_calls == 10
    clipping = [n.history[:, "lr"] for n in (net, expected)]
    assert clipping[0] == clipping[1]


def test_a_step_with_a_closure_recovers():
    with pytest.warns(DivergenceWarning) as caught:
        net = trained(Counting, RootOfFirst, with_a_bad_row())
    assert "Row 33 was left out of steps." in str(caught[0].message)
    first = net.nonfinite_reports_[0]
    assert first.evidence == (
        "1 of 20 outputs are non-finite from finite inputs and weights; aten.sqrt was "
        "given -1 to 2.35."
    )


class Penalized(NeuralNetRegressor):
    """A penalty on the gradient with respect to the inputs."""

    def train_step_single(self, batch, **fit_params):
        self._set_training(True)
        inputs, target = unpack_data(batch)
        inputs = inputs.clone().requires_grad_()
        outputs = self.infer(inputs, **fit_params)
        loss = self.get_loss(outputs, target, X=inputs, training=True)
        (gradient,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        loss = loss + 0.1 * self.penalty(gradient)
        loss.backward()
        return {"loss": loss, "y_pred": outputs}

    def penalty(self, gradient):
        return (gradient.norm(dim=1) - 1).square().mean()


class GuardedPenalized(GuardMixin, Penalized):
    pass


class LogPenalized(GuardedPenalized):
    def penalty(self, gradient):
        return torch.log(0.8 - gradient[:, 0]).mean()


def test_a_gradient_penalty_gives_the_bits_of_skorch():
    net = trained(GuardedPenalized)
    assert torch.equal(weights(net), weights(trained(Penalized)))


def test_a_gradient_penalty_that_fails_is_named():
    with pytest.warns(DivergenceWarning):
        net = trained(LogPenalized, max_epochs=6)
    first = net.nonfinite_reports_[0]
    line = LogPenalized.penalty.__code__.co_firstlineno + 1
    assert (first.operation, first.source) == ("aten.log", f"{__file__}:{line}")
    assert bool(torch.isfinite(weights(net)).all())


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = MLP(4), MLP()

    def forward(self, x):
        return self.critic(x)


class Adversarial(NeuralNet):
    """Two optimizers, with a step of each for a batch."""

    def initialize_optimizer(self, *args, **kwargs):
        rate = self.lr
        self.optimizer_ = torch.optim.Adam(self.module_.generator.parameters(), rate)
        self.optimizer_c_ = torch.optim.Adam(self.module_.critic.parameters(), rate)
        self._optimizers = ["optimizer", "optimizer_c"]
        return self

    def train_step(self, batch, **fit_params):
        inputs, _ = unpack_data(batch)
        module = self.module_.train()
        made = module.generator(torch.randn_like(inputs))
        self.optimizer_c_.zero_grad()
        real, fake = module.critic(inputs), module.critic(made.detach())
        loss = binary_cross_entropy_with_logits(real, torch.ones_like(real))
        loss = loss + binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        loss.backward()
        self.optimizer_c_.step()
        self.optimizer_.zero_grad()
        outputs = module.critic(made)
        loss = self.generator_loss(outputs)
        loss.backward()
        self.optimizer_.step()
        return {"loss": loss, "y_pred": outputs}

    def generator_loss(self, outputs):
        return binary_cross_entropy_with_logits(outputs, torch.ones_like(outputs))


class GuardedAdversarial(GuardMixin, Adversarial):
    pass


class FailsOnce(GuardedAdversarial):
    n_calls = 0

    def generator_loss(self, outputs):
        self.n_calls += 1
        loss = super().generator_loss(outputs)
        return loss * float("nan") if self.n_calls == 7 else loss


def test_adversarial_steps_give_the_bits_of_skorch():
    net = trained(GuardedAdversarial, Pair)
    assert torch.equal(weights(net), weights(trained(Adversarial, Pair)))


def test_a_failed_adversarial_step_is_taken_again():
    with pytest.warns(DivergenceWarning, match="Training failed once"):
        net = trained(FailsOnce, Pair)
    torch.testing.assert_close(weights(net), weights(trained(Adversarial, Pair)))


def test_a_trial_of_the_loss_leaves_the_step_that_a_scheduler_has_wrapped():
    net = trained(Before, max_epochs=1)
    torch.optim.lr_scheduler.StepLR(net.optimizer_, 1)
    wrapped = vars(net.optimizer_)["step"]
    before = weights(net).clone()
    loss_of(net, (torch.tensor(X), torch.tensor(Y)), {})
    assert vars(net.optimizer_)["step"] is wrapped
    assert torch.equal(weights(net), before)


class Broken(GuardedNetRegressor):
    def train_step(self, batch, **fit_params):
        return self.no_such_method(batch)


def test_an_error_in_a_step_of_ones_own_is_raised_unchanged():
    with pytest.raises(AttributeError, match="no_such_method"):
        trained(Broken)


class OwnLoop(NeuralNetRegressor):
    def run_single_epoch(self, *args, **kwargs):
        return super().run_single_epoch(*args, **kwargs)


class GuardedOwnLoop(GuardMixin, OwnLoop):
    pass


def test_a_loop_that_would_not_be_called_is_refused():
    with pytest.raises(TypeError) as caught:
        GuardedOwnLoop(MLP).initialize()
    assert str(caught.value) == (
        "run_single_epoch of OwnLoop would never be called, because a guarded net has "
        "one of its own. Move what it adds to train_step, validation_step or a "
        "callback."
    )


ORDERS_OF_BASES = [
    ((NeuralNetRegressor, GuardMixin), "GuardMixin, NeuralNetRegressor"),
    ((Plain, GuardMixin), "GuardMixin, Plain"),
    ((Accumulating, NeuralNet, GuardMixin), "GuardMixin, Accumulating, NeuralNet"),
]


@pytest.mark.parametrize(("bases", "names"), ORDERS_OF_BASES)
def test_bases_in_an_order_without_guard_are_refused(bases, names):
    with pytest.raises(TypeError) as caught:
        type("Wrong", bases, {})
    assert str(caught.value) == (
        "Wrong would train without guard, because its skorch net precedes GuardMixin "
        f"in the list of base classes. Write class Wrong({names})."
    )
    right = type("Right", tuple(sorted(bases, key=lambda b: b is not GuardMixin)), {})
    assert trained(right, max_epochs=1).nonfinite_reports_ == []


def test_a_mixin_without_a_net_is_refused():
    class OwnGuard(GuardMixin):
        pass

    for cls, name in ((OwnGuard, "OwnGuard"), (GuardMixin, "Net")):
        with pytest.raises(TypeError) as caught:
            cls(MLP)
        assert str(caught.value) == (
            f"{cls.__name__} has no skorch net to guard. Write "
            f"class {name}(GuardMixin, NeuralNetClassifier), or with another net of "
            "skorch."
        )

    class Net(OwnGuard, NeuralNetRegressor):
        pass

    assert trained(Net, max_epochs=1).nonfinite_reports_ == []


HOOKS = (
    "evaluation_step",
    "get_dataset",
    "get_iterator",
    "get_loss",
    "infer",
    "on_grad_computed",
    "train_step",
    "train_step_single",
    "validation_step",
)


class Hooked(NeuralNetRegressor):
    calls = frozenset()


def _hook(name):
    def hook(self, *args, **kwargs):
        self.calls |= {name}
        return getattr(super(Hooked, self), name)(*args, **kwargs)

    return hook


for _name in HOOKS:
    setattr(Hooked, _name, _hook(_name))


class GuardedHooked(GuardMixin, Hooked):
    pass


def test_every_method_that_a_class_behind_the_mixin_overrides_is_called():
    net = trained(GuardedHooked, train_split=ValidSplit(5))
    net.predict(X)
    assert net.calls == set(HOOKS)


@pytest.mark.parametrize(
    "setting", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")]
)
@pytest.mark.parametrize("cls", [GuardedNetRegressor, Counting])
def test_a_loop_and_a_step_do_not_depend_on_the_callers_settings(cls, setting):
    batch = torch.from_numpy(X), torch.from_numpy(Y)
    found = []
    for context in (contextlib.nullcontext, setting):
        torch.manual_seed(0)
        net = cls(MLP, train_split=None, verbose=0, max_epochs=2).initialize()
        with context():
            net.fit_loop(X, Y)
            net.train_step(batch)
        found.append(weights(net))
    assert torch.equal(*found)
