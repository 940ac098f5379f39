"""Cause, evidence and action that a failed step is judged to have."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from diagnosis_helpers import Net, table
from torch import nn

from sknan import DivergenceWarning, GuardedNet, NonFiniteTrainingError, losses
from sknan.diagnosis import StepEvidence, diagnose, examine_step, reproduce

LOWER_LR = "Lower lr; for an estimator, sknan.find_learning_rate suggests one."


LOOK_IN_FORWARD = (
    "Look in the module's forward for log, sqrt, division, exp, norm or a softmax "
    "over nothing, and keep its argument inside the domain."
)


STABLE_LOSS = (
    "Choose a loss that works on logits or in log space, such as "
    "criterion='cross_entropy' or 'huber'."
)


CLEAN = (
    "Clean and impute the inputs first: "
    'make_pipeline(NaNImputer(dtype="float32"), SafeScaler(), net).'
)


MOVED = "the weights have moved {} times their size since the last good ones at lr=0.1"


class LogOfOutput(nn.Module):
    """The output is NaN in each row in which the linear output is negative."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)
        nn.init.constant_(self.linear.weight, 1.0)

    def forward(self, X):
        return torch.log(self.linear(X))


class SquareRootOfOutput(LogOfOutput):
    def forward(self, X):
        return torch.sqrt(self.linear(X))


def linear(weight=1.0):
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, weight)
    nn.init.zeros_(module.bias)
    return module


def examined(module, X, y, criterion=nn.functional.mse_loss, relative_distance=0.0):
    """Return the report on one step of a plain torch loop."""
    output = module(X)
    loss = criterion(output, y)
    loss.backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return examine_step(
        StepEvidence(
            inputs=X,
            outputs=output,
            loss=loss.item(),
            gradient_norm=float(torch.stack([g.norm() for g in grads]).norm()),
            named_parameters=list(module.named_parameters()),
            relative_distance=relative_distance,
            lr=0.1,
            epoch=2,
            batch=3,
        )
    )


def test_nan_in_the_batch_is_blamed_on_the_data():
    X, y = torch.ones(4, 2), torch.ones(4, 1)
    X[1, 0], X[3, 0] = torch.nan, torch.inf
    report = examined(linear(), X, y)
    assert (report.phase, report.cause) == ("input", "data")
    assert report.rows == (1, 3)
    assert report.columns == (0,)
    assert str(report) == (
        "Non-finite input at epoch 2, batch 3. The batch contains 2 non-finite input "
        f"values. To blame: rows 1, 3, column 0 of the batch. {CLEAN}"
    )


def test_a_single_nonfinite_value_is_counted_in_the_singular():
    X, y = torch.ones(4, 2), torch.ones(4, 1)
    X[1, 0] = torch.nan
    report = examined(linear(), X, y)
    assert report.evidence == "The batch contains 1 non-finite input value."


def test_nan_in_nested_inputs_is_found():
    X = {"a": torch.ones(3, 2), "b": (torch.ones(3), [torch.full((3, 1), torch.nan)])}
    report = examine_step(
        StepEvidence(
            inputs=X,
            outputs=torch.ones(3, 1),
            loss=1.0,
            gradient_norm=1.0,
            named_parameters=[],
            relative_distance=0.0,
            lr=0.1,
            epoch=1,
            batch=1,
        )
    )
    assert (report.phase, report.cause) == ("input", "data")
    assert report.evidence == "The batch contains 3 non-finite input values."
    assert report.rows == (0, 1, 2)


def test_integer_inputs_are_not_blamed():
    embedding = nn.Sequential(nn.Embedding(3, 2), LogOfOutput())
    nn.init.constant_(embedding[0].weight, -1.0)
    report = examined(embedding, torch.tensor([0, 1, 2]), torch.ones(3, 1))
    assert (report.phase, report.cause) == ("forward", "activation")


def test_non_finite_weights_are_blamed_on_the_learning_rate():
    module = linear()
    with torch.no_grad():
        module.weight[0, 1] = torch.inf
    report = examined(
        module, torch.ones(4, 2), torch.ones(4, 1), relative_distance=math.inf
    )
    assert (report.phase, report.cause) == ("step", "learning_rate")
    assert str(report) == (
        "Training diverged at epoch 2, batch 3. 1 of 2 weight tensors are non-finite, "
        f"first 'weight'; {MOVED.format('inf')}. {LOWER_LR}"
    )


def test_the_log_of_a_negative_number_is_blamed_on_the_forward_pass():
    X = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-2.0, 0.0]])
    report = examined(LogOfOutput(), X, torch.ones(3, 1))
    assert (report.phase, report.cause, report.module) == ("forward", "activation", "")
    assert str(report) == (
        "Non-finite output at epoch 2, batch 3. 2 of 3 outputs are non-finite from "
        f"finite inputs and weights. {LOOK_IN_FORWARD}"
    )


def test_a_failure_far_from_the_verified_weights_is_blamed_on_the_learning_rate():
    X = -torch.ones(3, 2)
    report = examined(LogOfOutput(), X, torch.ones(3, 1), relative_distance=12.0)
    assert (report.phase, report.cause) == ("forward", "learning_rate")
    assert str(report) == (
        "Non-finite output at epoch 2, batch 3. 3 of 3 outputs are non-finite from "
        f"finite inputs and weights; {MOVED.format('12')}. {LOWER_LR}"
    )


def test_an_overflowing_loss_is_blamed_on_the_loss():
    report = examined(linear(1e15), torch.full((3, 2), 1e8), torch.ones(3, 1))
    assert (report.phase, report.cause) == ("loss", "loss")
    assert report.module == "criterion"
    largest = float(torch.tensor(1e15) * torch.tensor(1e8) * 2)
    assert str(report) == (
        "Non-finite loss in 'criterion' at epoch 2, batch 3. The loss is inf for "
        f"outputs of size up to {largest:.3g}. {STABLE_LOSS}"
    )


def test_a_nonfinite_gradient_is_blamed_on_the_module_with_the_weight():
    # The square root of 0 is 0, but its derivative is infinite.
    report = examined(SquareRootOfOutput(), torch.zeros(3, 2), torch.ones(3, 1))
    assert (report.phase, report.cause) == ("backward", "activation")
    assert report.module == "linear"
    assert str(report) == (
        "Non-finite gradient in 'linear' at epoch 2, batch 3. The loss is 1 but 1 of 1 "
        f"gradients are non-finite, first that of 'linear.weight'. {LOOK_IN_FORWARD}"
    )


def test_an_overflowing_gradient_of_a_huge_loss_is_to_be_clipped():
    X, y = torch.full((3, 2), 1e14), torch.ones(3, 1)
    report = examined(linear(1e-4), X, y, lambda output, _: output.mean() * 1e25)
    loss = float((torch.tensor(1e-4) * 1e14 * 2) * 1e25)
    assert (report.phase, report.cause) == ("backward", "gradient")
    assert str(report) == (
        f"Non-finite gradient at epoch 2, batch 3. The loss is {loss:.3g} but 1 of 2 "
        "gradients are non-finite, first that of 'weight'. Scale inputs and targets, "
        "choose an initialization or a cell that does not amplify, clip the "
        "gradients with clip_norm=1.0 or less, or lower lr."
    )


def test_a_refused_finite_step_is_reported_as_diverged():
    report = examined(
        linear(), torch.ones(3, 2), torch.zeros(3, 1), relative_distance=7.0
    )
    assert (report.phase, report.cause) == ("step", "learning_rate")
    assert str(report) == (
        "Training diverged at epoch 2, batch 3. The loss has grown to 4 and stays "
        f"there; {MOVED.format('7')}. {LOWER_LR}"
    )


def test_a_nan_distance_counts_as_far():
    report = examined(
        LogOfOutput(), -torch.ones(3, 2), torch.ones(3, 1), relative_distance=math.nan
    )
    assert report.cause == "learning_rate"


def test_an_overflow_of_float16_is_blamed_on_the_precision():
    module = linear(300.0).half()
    X, y = torch.full((4, 2), 300.0).half(), torch.ones(4, 1).half()
    report = examined(module, X, y)
    assert report.cause == "precision"
    assert report.action == "Use a wider dtype, such as float32."


def test_nonfinite_numbers_in_nested_outputs_are_found():
    report = examine_step(
        StepEvidence(
            inputs=torch.ones(2, 1),
            outputs=(torch.ones(2, 1), None, {"attention": torch.tensor([math.nan])}),
            loss=1.0,
            gradient_norm=1.0,
            named_parameters=[],
            relative_distance=0.0,
            lr=0.1,
            epoch=1,
            batch=1,
        )
    )
    assert report.phase == "forward"
    assert report.evidence == (
        "1 of 3 outputs are non-finite from finite inputs and weights."
    )


def test_examining_a_step_changes_neither_weights_nor_gradients():
    module = LogOfOutput()
    X = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    examined(module, X, torch.ones(2, 1))
    assert torch.equal(module.linear.weight, torch.ones(1, 2))
    assert torch.isnan(module.linear.weight.grad).any()


# -- targets that are not finite -----------------------------------------------------


def with_nan(y, row, value=torch.nan):
    y = y.clone()
    y[row] = value
    return y


HALF = torch.full((6, 1), 0.5)


@pytest.mark.parametrize(
    ("criterion", "value"),
    [
        (nn.MSELoss(), torch.nan),
        (nn.MSELoss(), torch.inf),
        (nn.BCEWithLogitsLoss(), torch.nan),
        (losses.MSELoss(), torch.nan),
        (lambda out, y: F.mse_loss(out.ravel(), y.clone()[:, 0]), torch.nan),
        (lambda out, y: (out - torch.log1p(y.double())).abs().mean(), torch.nan),
    ],
)
def test_targets_that_are_not_finite_are_to_be_corrected(criterion, value):
    report = diagnose(nn.Linear(3, 1), criterion, table(), with_nan(HALF, 2, value))
    assert (report.phase, report.cause, report.rows) == ("loss", "data", (2,))
    assert report.action == "Correct these targets, or leave out their rows."
    kind = "of size 1e18 and more" if math.isinf(value) else "that are NaN"
    assert report.evidence.endswith(f"; the batch has targets {kind}.")


@pytest.mark.parametrize("kind", [tuple, lambda pair: {"y": pair[0], "w": pair[1]}])
def test_weights_of_rows_beside_the_targets_count_as_targets(kind):
    def weighted(out, target):
        y, w = target.values() if isinstance(target, dict) else target
        return (w * (out - y).square()).mean()

    target = kind((HALF, with_nan(HALF, 4)))
    report = diagnose(nn.Linear(3, 1), weighted, table(), target)
    assert (report.cause, report.rows) == ("data", (4,))
    assert report.action == "Correct these targets, or leave out their rows."


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, row):
        return table()[row], with_nan(HALF, 2)[row]


def test_a_nan_target_of_a_data_set_is_reported_by_the_net():
    net = GuardedNet(nn.Linear(3, 1), nn.MSELoss, max_epochs=1, train_split=None)
    with pytest.warns(DivergenceWarning, match="Correct these targets"):
        net.set_params(verbose=0).fit(Rows(), None)
    report = net.nonfinite_reports_[0]
    assert (report.cause, report.rows) == ("data", (2,))


@pytest.mark.parametrize(
    "criterion",
    [
        lambda out, y: (out - y)[~y.isnan()].square().mean(),
        lambda out, y: torch.where(y.isnan(), 0.0, out - y).square().mean(),
    ],
)
def test_a_loss_may_ignore_missing_targets(criterion):
    y = with_nan(HALF, 2)
    assert diagnose(nn.Linear(3, 1), criterion, table(), y) is None
    report = diagnose(Net(torch.log), criterion, table(row4=-1.0), y)
    assert (report.operation, report.rows) == ("aten.log", (4,))


# -- weights and buffers that are not finite before the step -------------------------


class WithBuffer(nn.Module):
    def __init__(self, function, buffer):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.function = function
        self.register_buffer("part", torch.tensor(buffer))

    def forward(self, *args):
        if len(args) == 2:  # a loss
            return self.function((args[0] - args[1]).square(), self.part).mean()
        return self.function(self.linear(*args), self.part)


BAD_BUFFERS = {
    "used": (lambda x, b: x * b, [1.0, torch.nan, 1.0]),
    "infinite": (lambda x, b: x / b.exp() * b, [1.0, torch.inf, 1.0]),
    "copied": (lambda x, b: x * b[torch.tensor([2, 1, 0])], [1.0, torch.nan, 1.0]),
    "updated": (lambda x, b: x - b.mul_(0.9), [1.0, torch.nan, 1.0]),
}


@pytest.mark.parametrize("name", BAD_BUFFERS)
@pytest.mark.parametrize("is_loss", [False, True])
def test_a_buffer_that_is_not_finite_before_the_step_is_named(name, is_loss):
    part, other = WithBuffer(*BAD_BUFFERS[name]), nn.Linear(3, 3)
    module, criterion = (other, part) if is_loss else (part, nn.MSELoss())
    report = diagnose(module, criterion, table(), table())
    prefix = "criterion." if is_loss else ""
    assert report.evidence == (
        f"The buffer '{prefix}part' is not finite before the step: 1 of 3 entries."
    )
    assert report.action == (
        "Set it to finite numbers, or check the buffers that were loaded."
    )
    assert report.cause == ("loss" if is_loss else "architecture")
    assert report.rows == ()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_that_are_not_finite_are_named(training, value):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    module[1].running_var[2] = value
    report = diagnose(module.train(training), nn.MSELoss(), table(), HALF)
    assert (report.module, report.evidence) == (
        "1",
        "The buffer '1.running_var' is not finite before the step: 1 of 4 entries.",
    )


@pytest.mark.parametrize(
    ("function", "buffer"),
    [
        (lambda x, b: torch.softmax(x + b, 1), [-torch.inf, 0.0, 0.0]),
        (lambda x, b: torch.minimum(x, b), [torch.inf, 0.0, 0.0]),
        (lambda x, b: torch.where(b.isnan(), x, b), [torch.nan, 0.0, 0.0]),
        (lambda x, b: x, [torch.nan, 0.0, 0.0]),
    ],
    ids=["mask", "bound", "marks", "unused"],
)
def test_a_buffer_may_contain_infinities_or_nan_by_design(function, buffer):
    module = WithBuffer(function, buffer)
    assert diagnose(module, nn.MSELoss(), table(), table()) is None
    module.function = lambda x, b: torch.log(function(x, b) * 0 - 1)
    report = diagnose(module, nn.MSELoss(), table(), table())
    assert report.operation == "aten.log"


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, losses.CrossEntropyLoss])
def test_class_weights_that_are_not_finite_are_named(kind):
    criterion = kind(weight=torch.tensor([1.0, torch.nan, 1.0]))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    report = diagnose(nn.Linear(3, 3), criterion, table(), labels)
    assert report.action == "Set the entry to 1 for a class that does not occur."
    assert diagnose(nn.Linear(3, 3), criterion, table(), labels * 0) is None


class WithUnusedWeight(nn.Module):
    def __init__(self, function=lambda x: x):
        super().__init__()
        self.net = Net(function)
        self.unused = nn.Parameter(torch.full((2,), torch.nan))

    def forward(self, x):
        return self.net(x)


def test_an_unused_weight_that_is_not_finite_is_to_blame_only_before_a_training():
    assert diagnose(WithUnusedWeight(), nn.MSELoss(), table(), HALF) is None
    module = WithUnusedWeight(torch.log)
    report = diagnose(module, nn.MSELoss(), table(row4=-1.0), HALF)
    assert (report.operation, report.rows) == ("aten.log", (4,))
    net = GuardedNet(WithUnusedWeight, nn.MSELoss, verbose=0, train_split=None)
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.fit(table().numpy(), HALF.numpy())
    assert caught.value.report.evidence == (
        "The weight 'unused' is not finite before the first step: 2 of 2 entries."
    )
    assert caught.value.report.cause == "architecture"


@pytest.mark.parametrize("value", [3e19, -3e19, -1e25])
def test_a_huge_number_is_to_blame_for_running_statistics_that_overflow(value):
    X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    X[4, 1] = value
    # The output is of moderate size, since ReLU turns a large negative number into 0.
    module = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    report = diagnose(module, nn.MSELoss(), X, HALF)
    assert (report.cause, report.rows, report.columns) == ("data", (4,), (1,))
    assert report.evidence.endswith(
        "but a running statistic is not finite; the batch has inputs of size 1e18 and "
        "more."
    )


# -- inputs of any form --------------------------------------------------------------


def test_rows_of_nan_in_inputs_with_three_axes_are_named():
    X = torch.ones(6, 5, 2)
    X[4, 1, 0] = torch.nan
    module = nn.Sequential(nn.Flatten(), nn.Linear(10, 1))
    report = diagnose(module, nn.MSELoss(), X, HALF)
    assert (report.cause, report.rows, report.columns) == ("data", (4,), ())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x, w):
        return self.linear(torch.log(x)) * w


def test_a_dict_or_tuple_of_inputs_is_passed_to_several_parameters():
    X, w = table(row3=-1.0), torch.ones(6, 1)
    arrays = X.numpy().astype("float64"), w.numpy()
    for inputs in ({"w": w, "x": X}, (X, w), arrays, {"w": arrays[1], "x": X}):
        report = diagnose(TwoInputs(), nn.MSELoss(), inputs, HALF)
        assert (report.operation, report.rows) == ("aten.log", (3,))
    net = GuardedNet(TwoInputs, nn.MSELoss, max_epochs=1, train_split=None, verbose=0)
    with pytest.warns(DivergenceWarning):
        net.fit({"x": X.numpy(), "w": w.numpy()}, HALF.numpy())
    again = reproduce(net.nonfinite_reports_[0], TwoInputs(), nn.MSELoss())
    assert (again.operation, again.rows) == ("aten.log", (3,))


@pytest.mark.parametrize("size", [1.0, 200.0])
def test_the_logarithm_of_a_cumulative_sum_of_exponentials_has_a_stable_form(size):
    def loss(out, y, function):
        return (function(out[:, 0] * size - size * 2) - y[:, 0]).square().mean()

    def by_hand(x):
        return torch.log(torch.cumsum(torch.exp(x), 0))

    module = Net(lambda x: x * 1e2)
    report = diagnose(module, lambda o, y: loss(o, y, by_hand), table(), HALF)
    assert report.action == "Use torch.logcumsumexp."

    def stable(out, y):
        return loss(out, y, lambda x: torch.logcumsumexp(x, 0))

    assert diagnose(module, stable, table(), HALF) is None
