"""Repair of outputs that are not finite, in predictions and after a training."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from failing_trainings import (
    LogOfFirst,
    X,
    Y,
    fitted,
    network_of,
    refused,
)
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    GuardedNetRegressor,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetRegressor,
)

ROWS = np.abs(X) + 0.5
ROWS[[7, 90], 0] = -1.0
TARGETS = ROWS[:, 1:2] - ROWS[:, 2:3]


class OfFirst(nn.Module):
    """A function of column 0 beside the other columns."""

    def __init__(self, function, n_outputs=1):
        super().__init__()
        self.function = function
        self.head = nn.Linear(4, n_outputs)

    def forward(self, x):
        return self.head(torch.cat([self.function(x[:, :1]), x[:, 1:]], 1))


def without_line(message):
    return re.sub(r"\(\S*?:\d+\)", "(line)", str(message))


def table(bad, low=-0.9, high=0.9, rows=(7, 90)):
    rng = np.random.default_rng(0)
    inputs = rng.uniform(low, high, size=(128, 4)).astype("float32")
    inputs[list(rows), 0] = bad
    return inputs, inputs[:, 1:2] - inputs[:, 2:3]


def recorded(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    return result, [str(warning.message) for warning in caught]


NETS = {
    "estimator": lambda module: StableNetRegressor(
        module, max_epochs=4, batch_size=16, random_state=0, early_stopping=False
    ),
    "loop": lambda module: network_of(module, max_epochs=4),
}
both = pytest.mark.parametrize("kind", NETS)


def fit(kind, module, inputs, targets):
    if kind == "estimator":
        targets = targets.ravel()
    return NETS[kind](module).fit(inputs, targets)


# -- after a training ----------------------------------------------------------------

OUTSIDE = {
    "erfinv": (torch.erfinv, 1.1),
    "erfinv at its pole": (torch.erfinv, 1.0),
    "acosh": (lambda v: torch.acosh(v + 2), -1.5),
    "xlogy": (lambda v: torch.xlogy(v + 2, v + 1), -1.0),
    "entr": (lambda v: torch.special.entr(v + 1), -4.0),
    "ndtri": (lambda v: torch.special.ndtri(v / 2 + 0.5), 1.5),
    "lgamma": (lambda v: torch.lgamma(v + 1), -1.0),
    "exp": (torch.exp, 900.0),
    "sinh": (torch.sinh, -500.0),
    "cube": (lambda v: v**3, 1e14),
    "cumprod": (lambda v: torch.cumprod(v.expand(-1, 4), 1)[:, 3:], 1e13),
    "logsumexp of nothing": (
        lambda v: torch.where(v < 1, v, -torch.inf).logsumexp(1, keepdim=True),
        2.0,
    ),
    "mapped": (torch.vmap(lambda v: torch.log(v + 1)), -2.0),
    "cholesky": (
        lambda v: torch.linalg.cholesky((v + 1)[:, :, None])[:, :, 0],
        -3.0,
    ),
    "distribution": (
        lambda v: torch.distributions.Normal(0.0, v + 1, validate_args=True).stddev,
        -2.0,
    ),
}


@both
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_fitted_network_predicts_the_rows_that_its_training_left_out(kind, name):
    function, bad = OUTSIDE[name]
    inputs, targets = table(bad)
    with pytest.warns(DivergenceWarning) as caught:
        model = fit(kind, OfFirst(function), inputs, targets)
    assert "The module alone is not finite for 2 of 128 training rows" in str(
        caught[-1].message
    )
    assert caught[-1].message.report.rows == (7, 90)
    predicted, said = recorded(lambda: model.predict(inputs))
    assert len(said) == 1
    assert "The module alone is not finite for 2 of 128 rows, although X is" in said[0]
    others = np.delete(predicted, [7, 90], axis=0)
    assert others.min() <= predicted.min()
    assert predicted.max() <= others.max()


@both
def test_a_single_row_is_predicted_as_among_others(kind):
    inputs, targets = table(900.0)
    with pytest.warns(DivergenceWarning):
        model = fit(kind, OfFirst(torch.exp), inputs, targets)
    with pytest.warns(UserWarning, match="1 of 1 rows"):
        alone = model.predict(inputs[7:8])
    with pytest.warns(UserWarning, match="2 of 128 rows"):
        assert model.predict(inputs)[7] == pytest.approx(alone[0], rel=1e-5)


class MeanOfParts(nn.Module):
    """Sum of columns over a number that has its own input."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, first, second=None, n=None):
        if second is None:
            first, second, n = first
        return self.head((first + second).sum(1, keepdim=True) / n)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_a_number_of_any_input_depends_on_the_data(kind):
    count = np.ones((128, 1), dtype="float32")
    count[90] = 0.0
    parts = {"first": X[:, :1], "second": X[:, 1:3], "n": count}
    inputs = parts if kind is dict else tuple(parts.values())
    net = network_of(MeanOfParts, max_epochs=1)
    _, said = recorded(lambda: net.fit(inputs, Y))
    assert without_line(said[1]) == (
        "Non-finite output of aten.div (line). The module alone is not finite for 1 of "
        "128 training rows; aten.div was given 0 to 1. To blame: row 90. Use "
        "sknan.functional.divide, whose value and gradient stay finite. Predictions "
        "for this row keep each operation inside its domain and range."
    )


class FactoredZeros(nn.Module):
    """Cholesky factor of a matrix that is zero for any inputs with these weights."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 2), nn.Linear(2, 1)
        nn.init.zeros_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, x):
        matrices = torch.diag_embed(self.first(x) ** 2)
        return self.head(torch.linalg.cholesky(matrices).sum(-1))


@both
def test_an_operation_that_fails_for_any_inputs_depends_on_the_weights(kind):
    inputs, targets = table(0.5)
    net = NETS[kind](FactoredZeros).set_params(on_nonfinite="raise")
    if kind == "estimator":
        targets = targets.ravel()
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.fit(inputs, targets)
    assert caught.value.report.operation == "aten.linalg_cholesky_ex"


def test_an_error_in_evaluation_mode_is_named_after_the_training():
    class Narrow(OfFirst):
        def forward(self, x):
            return super().forward(x if self.training else x[:, :2])

    inputs, targets = table(0.5)
    net = NETS["loop"](Narrow(torch.exp)).set_params(train_split=None)
    _, messages = recorded(lambda: net.fit(inputs, targets))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        net.predict(inputs)
    assert messages == [
        "After training, a prediction for the training rows raises RuntimeError: "
        f"{caught.value}. Look for what the module does in evaluation mode only."
    ]


@both
def test_an_operation_outside_its_domain_for_all_rows_is_refused(kind):
    inputs, targets = table(0.5)
    with (
        pytest.warns(DivergenceWarning),
        pytest.raises(NonFiniteTrainingError) as caught,
    ):
        fit(kind, OfFirst(lambda v: torch.sqrt(v - 100)), inputs, targets)
    report = caught.value.report
    assert (report.operation, report.phase) == ("aten.sqrt", "forward")
    assert len(report.rows) == 128
    assert without_line(caught.value).startswith(
        "Non-finite output of aten.sqrt (line). After training, the output is not "
        "finite for 128 of 128 training rows; aten.sqrt was given -101 to -99.1. "
    )


def test_the_warning_after_a_training_is_whole():
    with pytest.warns(DivergenceWarning) as caught:
        net = network_of(LogOfFirst).fit(ROWS, TARGETS)
    warning = caught[-1].message
    assert without_line(warning) == (
        "Non-finite output of aten.log (line). The module alone is not finite for 2 of "
        "128 training rows; aten.log was given -1 to 2.83. To blame: rows 7, 90, "
        "column 0. Clean these columns, or use sknan.functional.log, whose value and "
        "gradient stay finite. Predictions for these rows keep each operation inside "
        "its domain and range."
    )
    assert warning.report.recovery.startswith("Predictions for these rows")
    assert all(report.batch for report in net.nonfinite_reports_)  # none is added


class BadInEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(x if self.training else torch.log(x))


def test_a_failure_in_evaluation_mode_alone_is_reported():
    with pytest.warns(DivergenceWarning, match="The module alone"):
        model = StableNetRegressor(BadInEvaluation, max_epochs=2, random_state=0).fit(
            ROWS, TARGETS.ravel()
        )
    (report,) = model.nonfinite_reports_
    assert (report.operation, report.rows) == ("aten.log", (7, 90))


class Encoder(nn.Module):
    """An encoder whose fast path without gradients is NaN where all keys are masked."""

    def __init__(self, keeps_first):
        super().__init__()
        self.keeps_first = keeps_first
        self.embed = nn.Linear(1, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        is_masked = x < -9.0
        if self.keeps_first:
            is_masked = is_masked & (torch.arange(x.shape[1]) > 0)
        hidden = self.embed(x.unsqueeze(-1))
        return self.head(self.encoder(hidden, src_key_padding_mask=is_masked)[:, 0])


def test_a_failure_without_gradients_alone_is_explained():
    inputs, targets = table(0.5)
    inputs[7] = -10.0

    def trained(keeps_first):
        net = network_of(Encoder, module__keeps_first=keeps_first, max_epochs=1)
        return net.fit(inputs, targets)

    with pytest.warns(DivergenceWarning, match="The module alone") as caught:
        trained(keeps_first=False)
    assert without_line(caught[0].message).startswith(
        "Non-finite output of aten._transformer_encoder_layer_fwd in "
        "'encoder.layers.0' (line). The module alone is not finite for 1 of 128 "
        "training rows. To blame: row 7. Leave at least one key of each row unmasked, "
        "such as the first."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained(keeps_first=True).nonfinite_reports_ == []


def test_a_report_has_the_names_of_columns():
    import pandas as pd

    frame = pd.DataFrame(ROWS, columns=["amount", "a", "b", "c"])
    with pytest.warns(DivergenceWarning) as caught:
        model = fit("estimator", LogOfFirst, frame, TARGETS)
    assert caught[-1].message.report.columns == ("amount",)
    with pytest.warns(UserWarning, match="rows 7, 90, column amount"):
        model.predict(frame)


class Noisy(nn.Module):
    """Batch normalization, and noise in evaluation mode too."""

    n_rows = 0

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        Noisy.n_rows += len(x)
        return self.head(self.body(x)) + 0.01 * torch.randn(len(x), 1)


class CountBatches(Callback):
    n_ = 0

    def on_batch_begin(self, net, **kwargs):
        self.n_ += 1


def test_the_evaluation_after_a_healthy_training_leaves_no_trace():
    found = []
    for net_class in (GuardedNet, NeuralNet):
        torch.manual_seed(0)
        Noisy.n_rows, batches = 0, CountBatches()
        net = net_class(
            Noisy,
            nn.MSELoss,
            train_split=None,
            max_epochs=2,
            callbacks=[batches],
            verbose=0,
        )
        net.fit(X, Y)
        modes = [part.training for part in net.module_.modules()]
        state = net.module_.state_dict(), torch.get_rng_state(), modes, batches.n_
        found.append((Noisy.n_rows, *state))
    (n_ours, *ours), (n_skorch, *of_skorch) = found
    assert n_ours == n_skorch + 2 * len(X)  # the loss of a batch, and all rows
    torch.testing.assert_close(ours, of_skorch, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop])
def test_the_weights_of_the_last_step_are_evaluated(optimizer):
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    options = {"optimizer": optimizer, "lr": 1e30, "batch_size": -1, "max_epochs": 1}
    with pytest.raises(NonFiniteTrainingError, match="The loss has risen from"):
        network_of(body, **options).fit(X, Y)


class TwoNetworks(GuardedNet):
    def initialize_module(self):
        super().initialize_module()
        self.critic_ = nn.Linear(1, 1)
        return self

    def infer(self, x, **fit_params):
        raise TypeError("which network?")

    def train_step_single(self, batch, **fit_params):
        output = self.critic_(self.module_(batch[0]))
        loss = self.get_loss(output, batch[1])
        loss.backward()
        return {"loss": loss, "y_pred": output}


def test_a_net_without_an_output_is_trained_as_in_skorch():
    net = TwoNetworks(
        nn.Linear(4, 1), nn.MSELoss, train_split=None, max_epochs=1, verbose=0
    )
    assert len(net.fit(X, Y).history) == 1


class Stream(torch.utils.data.IterableDataset):
    n_passes = 0

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __iter__(self):
        self.n_passes += 1
        yield from zip(self.inputs, self.targets, strict=True)


@pytest.mark.parametrize("inputs", [np.abs(X) + 0.5, ROWS], ids=["healthy", "rescued"])
def test_a_stream_of_rows_is_not_read_again(inputs):
    stream = Stream(inputs, Y)
    net = network_of(LogOfFirst, iterator_train__shuffle=False, max_epochs=2)
    fitted(net, stream, None)
    assert stream.n_passes == 2
    assert bool(net.nonfinite_reports_) == (inputs is ROWS)


class WithMask(nn.Module):
    """A line, and a part that is not finite."""

    def __init__(self, value):
        super().__init__()
        self.value, self.head = value, nn.Linear(4, 1)

    def forward(self, x):
        return self.head(x), torch.full_like(x, self.value)


class LossOfFirst(nn.Module):
    def forward(self, output, target):
        return (output[0] - target).square().mean()


@pytest.mark.parametrize("net_class", [GuardedNet, GuardedNetRegressor])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_parts_with_which_skorch_does_not_predict_may_be_nonfinite(net_class, value):
    net = net_class(WithMask(value), criterion=LossOfFirst, max_epochs=2, verbose=0)
    _, said = recorded(lambda: net.fit(X, Y))
    assert not said
    assert np.isfinite(net.predict(X)).all()


class LogAndMask(WithMask):
    def forward(self, x):
        line, mask = super().forward(x)
        return line + torch.log(x[:, :1]), mask


@pytest.mark.parametrize("net_class", [GuardedNet, GuardedNetRegressor])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_after_a_rescue_too_parts_that_the_loss_leaves_out_do_not_count(
    net_class, value
):
    options = {"module__value": value, "lr": 0.01, "verbose": 0, "train_split": None}
    net = net_class(LogAndMask, criterion=LossOfFirst, max_epochs=2, **options)
    fitted(net, ROWS, TARGETS)
    with pytest.warns(UserWarning, match="for 2 of 128 rows"):
        first, mask = net.forward(ROWS)
    assert torch.isfinite(first).all()
    assert not torch.isfinite(mask).any()
    with pytest.warns(UserWarning, match="To blame: rows 7, 90"):
        assert np.isfinite(net.predict(ROWS)).all()


class WithoutSome(nn.Module):
    """NaN for rows that the loss leaves out."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(x).masked_fill(x[:, :1] < -1.0, torch.nan)


class WithoutNaN(nn.Module):
    def forward(self, output, target):
        return (output.nan_to_num() - target).square().mean()


class OwnGetLoss(GuardedNet):
    def get_loss(self, y_pred, y_true, *args, **kwargs):
        return super().get_loss(y_pred.nan_to_num(), y_true, *args, **kwargs)


@pytest.mark.parametrize(
    ("net_class", "criterion"),
    [(GuardedNetRegressor, WithoutNaN), (OwnGetLoss, nn.MSELoss)],
)
def test_outputs_that_the_loss_of_the_user_leaves_out_are_accepted(
    net_class, criterion
):
    net = net_class(WithoutSome, criterion=criterion, max_epochs=2, verbose=0)
    _, said = recorded(lambda: net.fit(X, Y))
    assert not said
    assert len(net.history) == 2


class NaNInEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        output = self.head(x)
        return output if self.training else output * torch.nan


class OwnMSE(nn.MSELoss):
    """A loss of the user that leaves nothing out."""


@pytest.mark.parametrize("criterion", [nn.MSELoss, OwnMSE, WithoutNaN])
def test_a_network_without_a_finite_prediction_is_refused(criterion):
    error = refused(network_of(NaNInEvaluation, criterion, max_epochs=1))
    assert "the output is not finite for 128 of 128 training rows" in str(error)


@pytest.mark.parametrize("criterion", [nn.MSELoss, OwnMSE])
def test_a_loss_that_is_nonfinite_in_evaluation_accepts_no_output(criterion):
    net = network_of(BadInEvaluation, criterion, max_epochs=1)
    with pytest.warns(DivergenceWarning, match="2 of 128 training rows"):
        net.fit(ROWS, TARGETS)


def test_after_an_absurd_last_step_an_own_loss_accepts_no_output():
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    options = {"optimizer": torch.optim.SGD, "lr": 1e30, "batch_size": -1}
    error = refused(network_of(body, WithoutNaN, max_epochs=1, **options))
    assert "The loss has risen from" in str(error)


class OneUnbounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        output = self.head(x)
        if self.training:
            return output
        return torch.stack([output[:, 0], torch.log(x[:, 0] > 0.0)], 1)


def test_minus_infinity_is_no_output_of_a_regressor():
    net = GuardedNetRegressor(OneUnbounded, train_split=None, max_epochs=1, verbose=0)
    with pytest.warns(DivergenceWarning, match="The module alone is not finite for"):
        net.fit(X, X[:, :2])
    with pytest.warns(UserWarning, match="The module alone is not finite for"):
        assert np.isfinite(net.predict(X)).all()


def test_under_skip_no_output_is_repaired():
    net = network_of(LogOfFirst, on_nonfinite="skip", max_recoveries=99)
    assert refused(net, ROWS).report.rows == (7, 90)
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.predict(ROWS)
    assert caught.value.report.rows == (7, 90)


# -- in predictions ------------------------------------------------------------------


def test_a_prediction_in_many_batches_warns_once():
    good = np.abs(X) + 0.5
    net = network_of(LogOfFirst).fit(good, Y)
    far = np.abs(np.tile(X, (8, 1))) + 0.5
    far[[300, 1000], 0] = -3.0
    for predict in (net.predict, net.predict_proba, net.forward):
        output, said = recorded(lambda predict=predict: predict(far))
        assert np.isfinite(np.asarray(output)).all()
        (message,) = said
        assert "for 2 of 1024 rows" in message
        assert "To blame: rows 300, 1000, column 0." in message


def test_all_bad_rows_are_named_although_only_some_are_replayed():
    net = network_of(LogOfFirst).fit(np.abs(X) + 0.5, Y)
    far = np.abs(np.tile(X, (8, 1))) + 0.5
    far[::2, 0] = -3.0
    _, (message,) = recorded(lambda: net.predict(far))
    assert "for 512 of 1024 rows" in message
    first = ", ".join(map(str, range(0, 20, 2)))
    assert f"To blame: rows {first} and 502 more" in message


def test_the_rows_of_a_single_step_are_those_of_the_batch():
    net = network_of(LogOfFirst).fit(np.abs(X) + 0.5, Y)
    batch = torch.from_numpy(ROWS[:16])
    with pytest.warns(UserWarning, match="for 1 of 16 rows"):
        assert torch.isfinite(net.evaluation_step((batch, None))).all()


def test_far_from_the_training_data_an_overflow_is_refused():
    inputs, targets = table(0.5)
    net = fitted(network_of(OfFirst(torch.exp)), inputs, targets)
    inputs[3, 0] = 500.0
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.predict(inputs)
    assert without_line(caught.value) == (
        "Non-finite output of aten.exp (line). The network's output is not finite for "
        "1 of 128 rows, although X is finite; aten.exp was given -0.849 to 500. To "
        "blame: row 3, column 0. Clean these columns, or use "
        "sknan.functional.softplus, which grows like its argument, or bound the "
        "exponent."
    )


class BadInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(torch.log(x) if self.training else torch.exp(x))


@pytest.mark.parametrize("make", [network_of, StableNetRegressor])
def test_after_a_rescue_new_rows_stay_in_the_range_of_the_training_rows(make):
    net = fitted(make(BadInTraining, lr=0.01), ROWS, TARGETS)
    known = net.predict(ROWS)
    inputs = ROWS.copy()
    inputs[5, 0] = 500.0
    with pytest.warns(UserWarning, match="row 5, column 0"):
        predicted = net.predict(inputs)
    assert known.min() <= predicted[5] <= known.max()


def test_logits_of_classes_that_are_ruled_out_remain():
    class RuledOut(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            logits = self.head(x)
            ruled_out = torch.tensor([False, False, True])
            return logits.masked_fill(ruled_out, -torch.inf)

    labels = (X[:, 0] > 0).astype("int64")
    net = network_of(RuledOut, nn.CrossEntropyLoss, predict_nonlinearity=None)
    net = fitted(net, X, labels)
    output, said = recorded(lambda: net.predict_proba(X))
    assert not said
    assert np.isneginf(output[:, 2]).all()


def test_an_output_of_minus_infinity_alone_is_repaired():
    inputs = np.abs(X) + 0.5
    net = fitted(network_of(OfFirst(torch.log)), inputs, Y)
    with torch.no_grad():
        net.module_.head.weight.fill_(1.0)
    inputs[5, 0] = 0.0
    with pytest.warns(UserWarning, match="row 5, column 0"):
        assert np.isfinite(net.predict(inputs)).all()


def test_only_some_rows_of_a_batch_with_missing_values_are_repaired():
    net = network_of(LogOfFirst).fit(np.abs(X) + 0.5, Y)
    inputs = ROWS.copy()
    inputs[3, 1] = np.nan
    with pytest.warns(UserWarning, match="for 2 of 128 rows"):
        output = net.forward(inputs)
    assert output.isnan().flatten().nonzero().flatten().tolist() == [3]


def test_several_outputs_are_repaired():
    class Two(LogOfFirst):
        def forward(self, x):
            return super().forward(x), torch.sqrt(x[:, :2])

    net = network_of(Two)
    net.get_loss = lambda output, target, **_: (output[0] - target).square().mean()
    net.fit(np.abs(X) + 0.5, Y)
    with pytest.warns(UserWarning, match="for 2 of 128 rows"):
        outputs = net.forward(ROWS)
    assert all(torch.isfinite(output).all() for output in outputs)


def test_a_program_error_in_a_prediction_is_raised_unchanged():
    net = network_of(LogOfFirst).fit(np.abs(X) + 0.5, Y)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net.predict(X[:, :3])


# -- in the course of a training -----------------------------------------------------


@pytest.mark.parametrize("batch_size", [16, 128])
def test_validation_and_scores_are_those_of_repaired_outputs(batch_size):
    inputs, targets = table(900.0, rows=range(0, 128, 10))
    net = GuardedNetRegressor(
        OfFirst(torch.exp),
        max_epochs=3,
        batch_size=batch_size,
        lr=0.01,
        verbose=0,
        callbacks=[EpochScoring("r2", name="r2", lower_is_better=False)],
    )
    _, said = recorded(lambda: net.fit(inputs, targets))
    assert np.isfinite(net.history[:, ("valid_loss", "r2")]).all()
    assert len(said) == 2
    assert "Training failed" in said[0]
    assert "The module alone" in said[1]


def test_an_estimator_scores_epochs_with_repaired_outputs():
    inputs, targets = table(900.0, rows=range(0, 128, 10))
    model = StableNetClassifier(
        OfFirst(torch.exp, 2),
        callbacks=[("scores", EpochScoring("accuracy", name="accuracy"))],
        early_stopping=True,
        max_epochs=3,
        random_state=0,
    )
    _, said = recorded(lambda: model.fit(inputs, targets.ravel() > 0))
    assert np.isfinite(model.net_.history[:, ("valid_loss", "accuracy")]).all()
    assert len(said) == 2


class Packed(nn.Module):
    """Recurrent network that raises for a sequence of length 0."""

    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(1, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x, length):
        sequences = nn.utils.rnn.pack_padded_sequence(
            x[:, :, None], length, batch_first=True, enforce_sorted=False
        )
        return self.head(self.cells(sequences)[1][0])


def test_a_row_for_which_the_network_raises_is_named_and_left_out_of_validation():
    length = np.full(128, 4)
    length[5] = 0
    inputs = {"x": X, "length": length}
    net = network_of(Packed, max_epochs=2, train_split=ValidSplit(4), batch_size=32)
    _, said = recorded(lambda: net.fit(inputs, Y))
    what = (
        "RuntimeError: Length of all samples has to be greater than 0, but found an "
        "element in 'lengths' that is <= 0. To blame: row 5{}. Keep the arguments "
        "inside the domain that this call checks."
    )
    assert [*map(without_line, said)] == [
        "RuntimeError of aten._pack_padded_sequence (line). The output is not finite "
        "for 1 of 32 rows of a validation batch: the network raised "
        f"{what.format(' of the batch')} The validation loss leaves out this row."
    ]
    assert net.nonfinite_reports_ == []
    rest = {name: np.delete(part[:32], 5, 0) for name, part in inputs.items()}
    loss = np.square(net.predict(rest) - np.delete(Y[:32], 5, 0)).mean()
    assert net.history[-1, "valid_loss"] == pytest.approx(loss, rel=1e-5)
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.predict(inputs)
    assert without_line(caught.value) == (
        "RuntimeError of aten._pack_padded_sequence (line). The network's output is "
        "not finite for 1 of 128 rows, although X is finite: the network raised "
        f"{what.format('')}"
    )
    assert caught.value.report.rows == (5,)


def test_a_network_that_cannot_be_repaired_is_refused():
    class Unstable(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            fault = torch.where(x[:, :1] < 0, torch.nan, 0.0)
            return self.head(x) + fault

    error = refused(network_of(Unstable, max_epochs=2), ROWS, TARGETS)
    assert error.report.rows == (7, 90)
    assert "2 of 128 training rows" in str(error)
