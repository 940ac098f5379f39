"""A member of a stack, ``fit``, and the loop of a net agree for every option.

The cases are generated from the signatures of losses, estimators and optimizers, so
that a new option is tested as soon as it exists. Each option is varied on its own, with
healthy data and with one of the faults. The stack of each test also contains networks
with other options.
"""

import inspect
import warnings
import zlib

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import TimeSeriesSplit
from torch import nn

from sknan import StableNetClassifier, StableNetRegressor
from sknan._engine.jobs import Job, train_together
from sknan._utils.warn import recorded_warnings
from sknan.estimators._components import _OPTIMIZERS
from sknan.losses import (
    CLASSIFICATION_LOSSES,
    REGRESSION_LOSSES,
    get_criterion,
    traits_of,
)
from sknan.losses._traits import _TRAITS_OF_TORCH
from sknan.optim import SCHEDULES, Plateau, QuantileClip

_rng = np.random.default_rng(0)
X = _rng.normal(size=(70, 4)).astype(np.float32)
y = X[:, 0] + X[:, 1] * X[:, 2] + 0.1 * _rng.normal(size=70)
WEIGHTS = _rng.uniform(0.5, 2.0, size=70)

CLASSIFIER, REGRESSOR = StableNetClassifier, StableNetRegressor
COMMON = {"max_epochs": 2, "batch_size": 32, "random_state": 0}


# -- modules ---------------------------------------------------------------------------


class Residual(nn.Module):
    """Module with normalization, dropout and a connection around a layer."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        # The gradient of a bias before the normalization would be only rounding error.
        self.first = nn.Linear(n_features_in, 8, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.second, self.drop = nn.Linear(8, 8), nn.Dropout(0.2)
        self.head = nn.Linear(8, n_outputs)

    def forward(self, x):
        hidden = torch.relu(self.norm(self.first(x)))
        return self.head(hidden + self.drop(torch.tanh(self.second(hidden))))


class Root(Residual):
    """Module that is not finite for a few rows."""

    def forward(self, x):
        return super().forward(x) + torch.sqrt(x[:, :1] + 1.9)


class Whitened(Residual):
    """Module that raises a LinAlgError for some batches, and most small ones."""

    def forward(self, x):
        torch.linalg.cholesky(x.T @ x / len(x) - 0.35 * torch.eye(x.shape[1]))
        return super().forward(x)


class Distributed(Residual):
    """Module that raises a ValueError for the batches with one of a few rows."""

    def forward(self, x):
        return super().forward(x) + torch.distributions.Exponential(x[:, :1] + 1.9).mean


class LogProbabilities(nn.Sequential):
    """Module for losses of log-probabilities."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__(nn.Linear(n_features_in, n_outputs), nn.LogSoftmax(1))


class Probabilities(nn.Sequential):
    """Module for losses of probabilities."""

    def __init__(self, n_features_in, n_outputs):
        last = nn.Softmax(1) if n_outputs > 1 else nn.Sigmoid()
        super().__init__(nn.Linear(n_features_in, n_outputs), last)


_OUTPUTS = {"probabilities": Probabilities, "log-probabilities": LogProbabilities}

HEALTHY = {
    "dropout": {"module__width": 8, "module__dropout": 0.2},
    "frequencies": {"module__width": 8, "module__n_frequencies": 3},
    "residual": {"module": Residual},
}
FAULTS = {
    "absurd rate": {"module__width": 8, "lr": 1e3},
    "rows": {"module": Root},
    "LinAlgError": {"module": Whitened},
    "ValueError": {"module": Distributed},
}


# -- losses ----------------------------------------------------------------------------


class Scaled(nn.Module):
    """Loss class of a user."""

    def __init__(self, factor=2.0, reduction="mean"):
        super().__init__()
        self.factor, self.reduction = factor, reduction

    def forward(self, output, target):
        target = target.reshape(len(output), -1).to(output)
        loss = self.factor * (output - target).abs().mean(1)
        return {"mean": torch.mean, "sum": torch.sum, "none": torch.clone}[
            self.reduction
        ](loss)


def cubic(output, target, power=3.0):
    """Loss function of a user."""
    target = target.reshape(len(output), -1).to(output)
    return (output - target).abs().pow(power).mean()


def losses_for(estimator_class):
    """Return all losses: by name, of torch, and of a user; each class once.

    Losses of torch for both tasks are trained by the classifier.
    """
    is_classifier = estimator_class is CLASSIFIER
    named = CLASSIFICATION_LOSSES if is_classifier else REGRESSION_LOSSES
    tasks = ("classification", None) if is_classifier else ("regression",)
    of_torch = [k for k, t in _TRAITS_OF_TORCH.items() if t.task in tasks]
    by_class = {kind: name for name, kind in named.items()}
    return [*by_class.values(), *of_torch, Scaled, cubic]


LOSSES = [(kind, loss) for kind in (CLASSIFIER, REGRESSOR) for loss in losses_for(kind)]


def targets_for(estimator_class, criterion):
    """Return targets in the domain of a loss."""
    traits = traits_of(criterion)
    is_binary = traits.output_kind == "probabilities" or traits.is_binary
    if estimator_class is CLASSIFIER or is_binary:
        return (y > 0).astype(int if estimator_class is CLASSIFIER else float)
    return y if traits.target_domain == "all" else np.abs(y) + 0.1


# -- options ---------------------------------------------------------------------------


def negative_error(estimator, X, y, sample_weight=None):
    """Scorer of a user."""
    return -np.average(np.abs(estimator.predict(X) - y), weights=sample_weight)


# Values of options whose default does not show what they may be.
VALUES = {
    "adaptive_clip": ["agc", "quantile", "zscore", QuantileClip(0.5, min_history=2)],
    "batch_size": [7, 23],
    "betas": [(0.5, 0.9)],
    "class_weight": ["balanced", {0: 1.0, 1: 2.0}],
    "clip_norm": [None, 0.1, 100.0, -1.0],
    "clip_value": [0.01, 100.0, -1.0],
    "dampening": [0.5],
    "early_stopping": [True],
    "ema_decay": [0.5, 0.99, 1.0],
    "foreach": [True],
    "fused": [False],
    "ignore_index": [0],
    "lr_schedule": [*SCHEDULES, None, Plateau(patience=1), np.cos, "unknown"],
    "max_time": [1e6],
    "momentum": [0.5],
    "n_iter_no_change": [1],
    "num_threads": [1],
    "on_nonfinite": ["skip", "raise", "unknown"],
    "optimizer": [*_OPTIMIZERS, "unknown"],
    "pos_weight": [torch.tensor([2.0])],
    "reduction": ["mean", "sum", "none"],
    "scoring": [None, "neg_mean_absolute_error", negative_error, "unknown"],
    "validation_split": [TimeSeriesSplit(3), [(np.arange(50), np.arange(50, 70))], 5],
    "warmup": [0.3, 2, -1.0],
    "weight": [torch.tensor([1.0, 2.0]), torch.tensor([2.0])],
    "weight_decay": [0.0, 2.5],
}

# Settings without which an option has no effect.
NEEDED = {
    "n_iter_no_change": {"early_stopping": True},
    "scoring": {"early_stopping": True},
    "validation_fraction": {"early_stopping": True},
    "dampening": {"optimizer__momentum": 0.5},
    "nesterov": {"optimizer__momentum": 0.5},
}

# Parts and sizes that the tests choose, options for other engines and devices, and
# former names of torch, of which a loss makes its ``reduction``.
CHOSEN = {"module", "criterion", "random_state", "lr", "max_epochs"}
ELSEWHERE = {
    "callbacks",
    "capturable",
    "compile",
    "device",
    "differentiable",
    "reduce",
    "size_average",
    "verbose",
}


def values_of(parameter):
    """Return values of an option other than its default."""
    default = parameter.default
    if parameter.name in VALUES:
        return VALUES[parameter.name]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [default + 1]
    if isinstance(default, float):
        return [0.7 * default + 0.1]
    pytest.fail(
        f"No value is known for the option {parameter.name!r} with the default "
        f"{default!r}. Add one to VALUES in {__file__}, or the name to ELSEWHERE."
    )


def variants(function, prefix=""):
    """Return settings that each change one option of a class or function."""
    return [
        {**NEEDED.get(name, {}), prefix + name: value}
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in CHOSEN | ELSEWHERE and parameter.default is not parameter.empty
        for value in values_of(parameter)
        if value is not parameter.default
    ]


def chosen(situations, options):
    """Return one of the situations, always the same one for the same options."""
    names = list(situations)
    return names[zlib.crc32(repr([*options]).encode()) % len(names)]


def test_an_option_without_a_known_value_fails():
    def loss(output, target, shape="round"):
        return output

    with pytest.raises(pytest.fail.Exception) as failure:
        variants(loss)
    assert str(failure.value) == (
        "No value is known for the option 'shape' with the default 'round'. Add one "
        f"to VALUES in {__file__}, or the name to ELSEWHERE."
    )


# -- comparison ------------------------------------------------------------------------


def job_of(estimator_class, criterion, settings, **fit_params):
    """Return a job; the loss may need another module than the default one."""
    kind = get_criterion(criterion) if isinstance(criterion, str) else criterion
    target = targets_for(estimator_class, kind)
    options = {"criterion": criterion, **COMMON, **settings}
    module = _OUTPUTS.get(traits_of(kind).output_kind)
    if module is not None and "module" not in options:
        options = {k: v for k, v in options.items() if not k.startswith("module__")}
        options["module"] = module
    return Job(estimator_class(**options), X, target, fit_params)


def by_the_loop(estimator, *args, **fit_params):
    plan = estimator._plan(estimator._training_rows(*args, **fit_params))
    plan.run_loop()
    estimator._finish(plan)


def trained(job, train):
    """Return what a function leaves of the training of a job."""
    estimator, error = clone(job.estimator), None
    with recorded_warnings() as issued:
        try:
            train(estimator, job.X, job.y, **job.fit_params)
        except Exception as raised:
            error = raised
    return result_of(estimator, error, issued)


def result_of(estimator, error, issued):
    """Return the error, warnings and everything else that a training leaves."""
    result = {
        "error": error and (type(error), str(error)),
        "warnings": sorted((type(w).__name__, str(w)) for w in issued),
    }
    if error is not None:
        return result
    net = estimator.net_
    tensors = net.module_.state_dict().items()
    is_classifier = hasattr(estimator, "predict_proba")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # outputs that prediction has repaired
        predictions = estimator.predict(X)
        probabilities = estimator.predict_proba(X) if is_classifier else None
    return result | {
        "reports": [report.to_dict() for report in estimator.nonfinite_reports_],
        "history": [
            {k: v for k, v in row.items() if k not in ("batches", "dur")}
            for row in net.history
        ],
        "weights": {name: tensor.numpy() for name, tensor in tensors},
        "effective_lr": estimator.effective_lr_,
        "best_epoch": estimator.best_epoch_,
        "curves": (estimator.loss_curve_, estimator.validation_scores_),
        "predictions": predictions,
        "probabilities": probabilities,
    }


def difference(result, expected):
    """Return the name of the first entry in which two results differ, or None."""
    for name in ("error", *expected):
        try:
            np.testing.assert_equal(result.get(name), expected[name])
        except AssertionError:
            return f"{name} {result.get(name)} instead of {expected[name]}"
    return None


def difference_from_loop(result, looped):
    """Return how a training differs from that of the loop by more than rounding."""
    if result["error"] or looped["error"]:
        return None if result["error"] and looped["error"] else "raises in one engine"
    if result["reports"] or looped["reports"]:
        is_equal = bool(result["reports"]) == bool(looped["reports"])
        is_finite = np.isfinite(looped["predictions"]).all()
        return None if is_equal and is_finite else "rescued in one engine"
    for name, weight in looped["weights"].items():
        if not np.allclose(result["weights"][name], weight, rtol=0.0, atol=1e-5):
            return f"weight {name}"
    for row, expected in zip(result["history"], looped["history"], strict=True):
        if row != pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True):
            return f"history {row} instead of {expected}"
    names = ("warnings", "best_epoch", "effective_lr")
    return next((name for name in names if result[name] != looped[name]), None)


def differences(jobs, names, *, is_healthy, is_stacked=False):
    """Train jobs together, and describe those that differ from fit or the loop.

    Jobs without a name only make the stack larger.
    """
    found = []
    outcomes = train_together(
        [job._replace(estimator=clone(job.estimator)) for job in jobs]
    )
    for job, name, outcome in zip(jobs, names, outcomes, strict=True):
        if name is None:
            continue
        result = result_of(outcome.estimator, outcome.error, outcome.warnings)
        # A network whose first steps raise, such as BCE of negative numbers, is trained
        # by the loop, because a stack cannot be compared with it.
        has_failed = outcome.error or result["reports"]
        if is_stacked and not (outcome.is_stacked or has_failed):
            found.append(f"{name}: not stacked")
        expected = trained(job, type(job.estimator).fit)
        unlike_fit = difference(result, expected)
        if unlike_fit:
            found.append(f"{name}, stack and fit: {unlike_fit}")
        looped = trained(job, by_the_loop)
        unlike_loop = difference_from_loop(expected, looped)
        if unlike_loop and (is_healthy or "one engine" in unlike_loop):
            found.append(f"{name}, fit and loop: {unlike_loop}")
    return found


# -- tests -----------------------------------------------------------------------------


@pytest.mark.parametrize("estimator_class", [CLASSIFIER, REGRESSOR])
def test_data_that_decide_which_rows_are_held_out(estimator_class):
    options = {**HEALTHY["dropout"], "early_stopping": True}
    job = job_of(estimator_class, "focal" if estimator_class is CLASSIFIER else "mse",
                 options)  # fmt: skip
    X_val, y_val = X[::2], job.y[::2]
    weights = {"sample_weight": WEIGHTS, "sample_weight_val": WEIGHTS[::2]}
    data = [
        {"X_val": X_val, "y_val": y_val},
        {"X_val": X_val, "y_val": y_val, **weights},
        {"groups": np.arange(70) // 7},
    ]
    jobs = [job._replace(fit_params=fit_params) for fit_params in data]
    # Networks on the same rows, so that all of them are stacked.
    others = [
        job._replace(estimator=clone(job.estimator).set_params(lr=0.01)) for job in jobs
    ]
    names = [*map(sorted, data), *[None] * len(others)]
    assert not differences([*jobs, *others], names, is_healthy=True, is_stacked=True)


@pytest.mark.parametrize(
    ("estimator_class", "criterion"),
    LOSSES,
    ids=[f"{kind._task}-{getattr(loss, '__name__', loss)}" for kind, loss in LOSSES],
)
def test_options_of_losses(estimator_class, criterion):
    kind = get_criterion(criterion) if isinstance(criterion, str) else criterion
    name = getattr(criterion, "__name__", criterion)
    jobs, names = [], []
    for settings in [{}, *variants(kind, "criterion__")]:
        situation = chosen(HEALTHY, [name, *settings])
        # Adam makes steps of rounding errors, where the loss has no gradient.
        options = {"optimizer": "sgd", **HEALTHY[situation], **settings}
        jobs.append(job_of(estimator_class, criterion, options))
        jobs.append(job_of(estimator_class, criterion, {**options, "random_state": 1}))
        names += [(settings, situation), None]
    options = {"optimizer": "sgd", **HEALTHY["dropout"]}
    jobs += [job_of(estimator_class, criterion, options, sample_weight=WEIGHTS)] * 2
    names += ["weights", None]
    assert not differences(jobs, names, is_healthy=True, is_stacked=True)
    situation = chosen(FAULTS, [name])
    # The networks fail in different steps.
    seeds = [{**FAULTS[situation], "random_state": seed} for seed in range(2)]
    jobs = [job_of(estimator_class, criterion, options) for options in seeds]
    assert not differences(jobs, [situation, None], is_healthy=False)


def variants_of_training(estimator_class, optimizers):
    """Return settings that each change one option of estimator or optimizer."""
    return [{}, *variants(estimator_class)] + [
        {"optimizer": name, **options}
        for name in optimizers
        for options in variants(_OPTIMIZERS[name], "optimizer__")
    ]


@pytest.mark.parametrize("situation", [*HEALTHY, *FAULTS])
@pytest.mark.parametrize("estimator_class", [CLASSIFIER, REGRESSOR])
def test_options_of_estimators_and_optimizers(estimator_class, situation):
    is_healthy = situation in HEALTHY
    situations = HEALTHY if is_healthy else FAULTS
    # Only the loop trains with other optimizers.
    optimizers = _OPTIMIZERS if is_healthy else ("adamw", "adam", "sgd")
    options = [
        settings
        for settings in variants_of_training(estimator_class, optimizers)
        if chosen(situations, settings) == situation
    ]
    criterion = "cross_entropy" if estimator_class is CLASSIFIER else "mse"
    jobs = [
        job_of(estimator_class, criterion, {**situations[situation], **settings})
        for settings in options
    ]
    assert not differences(jobs, options, is_healthy=is_healthy)
