import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from torch import nn

from sknan import DivergenceWarning, StableNetClassifier, StableNetRegressor
from sknan._engine.jobs import Job, job_key, train_together
from sknan._engine.training import train_as_stack


@pytest.fixture(scope="module")
def tables():
    """Two folds of one table."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(260, 5)).astype(np.float32)
    y = X[:, 0] + X[:, 1] * X[:, 2] + 0.1 * rng.normal(size=260)
    return [(X[:200], y[:200]), (X[60:], y[60:])]


def jobs_of(door, tables, settings, **common):
    options = {"max_epochs": 3, "batch_size": 32, "random_state": 0, **common}
    jobs = []
    for setting in settings:
        for X, y in tables:
            target = (y > 0).astype(int) if door is StableNetClassifier else y
            jobs.append(Job(door(**{**options, **setting}), X, target, {}))
    return jobs


def fitted_alone(jobs):
    return [clone(job.estimator).fit(job.X, job.y, **job.fit_params) for job in jobs]


def weights_of(estimator):
    return list(estimator.net_.module_.state_dict().values())


def assert_same(outcomes, others, atol=1e-5):
    """Weights alike, and what else a fit leaves behind.

    A stack multiplies in another order, and by the rate last: a weight may differ by
    some last bits, which grow from step to step.
    """
    for outcome, other in zip(outcomes, others, strict=True):
        ours = outcome.estimator
        for mine, its in zip(weights_of(ours), weights_of(other), strict=True):
            torch.testing.assert_close(mine, its, atol=atol, rtol=0.0)
        assert ours.n_iter_ == other.n_iter_
        assert ours.best_epoch_ == other.best_epoch_
        assert ours.effective_lr_ == other.effective_lr_
        histories = [est.net_.history.to_list() for est in (ours, other)]
        for mine, its in zip(*histories, strict=True):
            assert mine.keys() == its.keys()
            for key in mine.keys() - {"batches", "dur"}:
                assert mine[key] == pytest.approx(its[key], rel=1e-5, abs=1e-6), key


RATES = [{"lr": lr} for lr in (1e-4, 1e-3, 1e-2)]

CASES = {
    "rates": (RATES, {}),
    "decays": ([{"weight_decay": d} for d in (0.0, 0.1, 1.0)], {}),
    "clips": ([{"clip_norm": c} for c in (None, 0.1, 1.0)], {}),
    "schedules": (
        [
            {"lr_schedule": "one_cycle"},
            {"lr_schedule": "plateau"},
            {"lr_schedule": None, "warmup": 5},
        ],
        {"max_epochs": 6},
    ),
    "seeds": ([{"random_state": seed} for seed in range(3)], {}),
    "dropout": (
        [{"module__dropout": p, "lr": 1e-2} for p in (0.1, 0.5)],
        {"module__activation": "silu"},
    ),
    "early stopping": (
        [{"lr": lr, "n_iter_no_change": n} for lr, n in [(1e-1, 1), (1e-3, 9)]],
        {"early_stopping": True, "max_epochs": 20},
    ),
    "embeddings": (
        [{"random_state": seed, "module__dropout": 0.2} for seed in range(3)],
        {"module__n_frequencies": 4, "early_stopping": True},
    ),
    "Adam": (RATES, {"optimizer": "adam", "weight_decay": 0.1}),
    "betas": ([{"optimizer__betas": b} for b in [(0.5, 0.9), (0.9, 0.999)]], {}),
    "SGD": (RATES, {"optimizer": "sgd", "weight_decay": 0.1}),
    "momentum": (
        [{"optimizer__momentum": m} for m in (0.0, 0.5, 0.9)],
        {"optimizer": "sgd", "lr": 0.01},
    ),
    "Nesterov": (
        RATES,
        {
            "optimizer": "sgd",
            "optimizer__momentum": 0.9,
            "optimizer__nesterov": True,
        },
    ),
    "one batch": (RATES, {"batch_size": 512}),
    "torch's loss": (RATES, {"criterion": "torchs"}),
}


@pytest.mark.parametrize(("settings", "common"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("door", [StableNetClassifier, StableNetRegressor])
def test_a_stack_trains_each_as_it_would_be_by_itself(door, tables, settings, common):
    if common.get("criterion") == "torchs":
        is_classifier = door is StableNetClassifier
        loss = nn.CrossEntropyLoss if is_classifier else nn.MSELoss
        common = {**common, "criterion": loss}
    jobs = jobs_of(door, tables, settings, module__width=16, **common)
    others = fitted_alone(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_same(outcomes, others)


@pytest.mark.parametrize("width", [1, 7, 37])
def test_odd_widths(tables, width):
    jobs = jobs_of(StableNetClassifier, tables, RATES, module__width=width)
    others = fitted_alone(jobs)
    assert_same(train_together(jobs), others)


def test_predictions_are_those_of_separate_fits(tables):
    jobs = jobs_of(StableNetClassifier, tables, RATES)
    others = fitted_alone(jobs)
    for outcome, other, job in zip(train_together(jobs), others, jobs, strict=True):
        np.testing.assert_allclose(
            outcome.estimator.predict_proba(job.X),
            other.predict_proba(job.X),
            rtol=0,
            atol=1e-4,
        )


# Odd widths and batches: a product rounds otherwise where its result does not begin at
# 64 bytes, and a vector may end within a slice.
@pytest.mark.parametrize(
    "common",
    [
        {},
        {"module__width": 7},
        {"module__width": 37, "batch_size": 22},
        {"module__depth": 1, "module__width": 21},
        {"optimizer": "sgd", "optimizer__momentum": 0.9, "module__width": 5},
        {"optimizer": "adam", "weight_decay": 0.1, "module__width": 9},
    ],
)
@pytest.mark.parametrize("door", [StableNetClassifier, StableNetRegressor])
def test_no_slice_touches_another(tables, door, common):
    settings = [{"lr": 0.03 * 10.0**-k} for k in range(7)]
    calm = train_together(jobs_of(door, tables[:1], settings, **common))
    with_one = [*settings[:3], {"lr": 1e30}, *settings[3:]]
    jobs = jobs_of(door, tables[:1], with_one, **common)
    outcomes = train_together(jobs)
    wild = outcomes.pop(3)
    for outcome, other in zip(outcomes, calm, strict=True):
        assert outcome.is_stacked
        pairs = zip(
            weights_of(outcome.estimator), weights_of(other.estimator), strict=True
        )
        assert all(torch.equal(*pair) for pair in pairs)
    assert not wild.is_stacked


@pytest.mark.parametrize("width", [7, 16])
def test_a_stack_of_one_is_a_slice_of_many_to_the_bit(tables, width):
    jobs = jobs_of(StableNetClassifier, tables, RATES, module__width=width)
    for outcome, job in zip(train_together(jobs), jobs, strict=True):
        alone = clone(job.estimator)
        plan = alone._prepare(job.X, job.y)
        assert train_as_stack(plan)
        pairs = zip(
            weights_of(outcome.estimator),
            plan.net.module_.state_dict().values(),
            strict=True,
        )
        assert all(torch.equal(*pair) for pair in pairs)


def test_a_slice_that_fails_on_the_way_leaves_the_others_alone(tables):
    # Large enough to explode, small enough to be tried in the stack.
    settings = [{"lr": 1e-3}, {"lr": 1e9}, {"lr": 1e-2}]
    jobs = jobs_of(StableNetClassifier, tables, settings, clip_norm=None, max_epochs=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        others = fitted_alone(jobs)
    outcomes = train_together(jobs)
    stacked = [outcome.is_stacked for outcome in outcomes]
    assert stacked == [True, True, False, False, True, True]
    assert_same(outcomes, others)
    assert outcomes[2].estimator.nonfinite_reports_
    assert [w.category for w in outcomes[2].warnings] == [DivergenceWarning]


def test_what_a_fit_would_raise_is_handed_over(tables):
    (X, y), _ = tables
    broken = X.copy()
    broken[3, 1] = np.nan
    jobs = [
        Job(StableNetRegressor(max_epochs=1), X, y, {}),
        Job(StableNetRegressor(max_epochs=1), broken, y, {}),
        Job(StableNetRegressor(max_epochs=1, lr=-1), X, y, {}),
    ]
    outcomes = train_together(jobs)
    assert outcomes[0].error is None
    assert outcomes[1].estimator is None
    assert "NaN" in str(outcomes[1].error)
    assert "'lr'" in str(outcomes[2].error)


def test_warnings_are_handed_over(tables):
    jobs = jobs_of(StableNetRegressor, tables, [{"clip_norm": 1e6}, {"clip_norm": 0.1}])
    outcomes = train_together(jobs)
    assert "clip_norm=1000000.0 never had an effect" in str(
        outcomes[0].warnings[0].message
    )
    assert not outcomes[2].warnings


class Residual(nn.Module):
    """With normalisation, buffers, dropout and a weight of its own."""

    def __init__(self, n_features_in, n_outputs, p=0.2):
        super().__init__()
        # A bias here would have no gradient but rounding, which Adam makes steps of.
        self.layer = nn.Linear(n_features_in, 16, bias=False)
        self.batch_norm = nn.BatchNorm1d(16)
        self.layer_norm = nn.LayerNorm(16)
        self.drop_early, self.drop_late = nn.Dropout(p), nn.Dropout(p)
        self.scale = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, n_outputs)

    def forward(self, X):
        hidden = torch.relu(self.batch_norm(self.layer(self.drop_early(X))))
        hidden = hidden + self.drop_late(self.layer_norm(hidden * self.scale))
        return self.head(hidden)


class Convolution(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * n_features_in, n_outputs)

    def forward(self, X):
        return self.head(torch.tanh(self.convolution(X[:, None])).flatten(1))


STACKED = {
    "residual": ({"module": Residual}, {}),
    "convolution": ({"module": Convolution}, {}),
    "early stopping": (
        {
            "module": Residual,
            "early_stopping": True,
            "n_iter_no_change": 1,
            "max_epochs": 3,
        },
        {},
    ),
    "sample weights": ({}, {"sample_weight": np.arange(200) + 1.0}),
    "weights, custom": ({"module": Residual}, {"sample_weight": np.arange(200) + 1.0}),
}


@pytest.mark.parametrize(("params", "fit_params"), STACKED.values(), ids=STACKED)
@pytest.mark.parametrize("door", [StableNetClassifier, StableNetRegressor])
def test_modules_of_ones_own_are_trained_alike_but_for_rounding(
    door, tables, params, fit_params
):
    params = {"max_epochs": 1, **params}
    jobs = [
        job._replace(fit_params=fit_params)
        for job in jobs_of(door, tables, RATES, **params)
    ]
    others = fitted_alone(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    # Rounding grows from epoch to epoch, and Adam makes as much of a gradient that is
    # nearly nothing, as one of 16 000 in a wide layer is, as of any other.
    is_small = params["max_epochs"] == 1 and "module" in params
    assert_same(outcomes, others, atol=1e-5 if is_small else 1e-4)


@pytest.mark.parametrize(
    ("door", "criterion", "options"),
    [
        (StableNetRegressor, "huber", {}),
        (StableNetRegressor, "gaussian_nll", {}),
        (StableNetClassifier, "cross_entropy", {"criterion__label_smoothing": 0.1}),
        (StableNetClassifier, "binary_cross_entropy", {}),
    ],
)
def test_other_losses_are_trained_alike_but_for_rounding(
    door, tables, criterion, options
):
    jobs = jobs_of(door, tables, RATES, criterion=criterion, **options)
    others = fitted_alone(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_same(outcomes, others, atol=1e-5)


class Branching(Convolution):
    def forward(self, X):
        output = super().forward(X)
        return output if output.mean() > 0 else -output


class FunctionalDropout(Convolution):
    def forward(self, X):
        return super().forward(nn.functional.dropout(X, 0.5, self.training))


class TwiceDropped(Residual):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.drop_late = self.drop_early


def raising_late(progress):
    if progress > 0.5:
        raise RuntimeError("I am at my end")
    return 1.0


def test_a_schedule_that_fails_takes_no_other_with_it(tables):
    settings = [{"lr_schedule": "cosine"}, {"lr_schedule": raising_late}, {"lr": 1e-2}]
    outcomes = train_together(jobs_of(StableNetClassifier, tables[:1], settings))
    assert [outcome.is_stacked for outcome in outcomes] == [True, False, True]
    assert str(outcomes[1].error) == "I am at my end"


def test_a_schedule_of_ones_own_is_stacked(tables):
    settings = [{"lr_schedule": lambda progress: 1.0 - progress, "lr": 1e-2}, *RATES]
    jobs = jobs_of(StableNetClassifier, tables, settings)
    others = fitted_alone(jobs)
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_same(outcomes, others)


@pytest.mark.parametrize("module", [Branching, FunctionalDropout, TwiceDropped])
def test_what_cannot_be_stacked_is_trained_alone(tables, module):
    jobs = jobs_of(StableNetRegressor, tables, RATES, module=module)
    others = fitted_alone(jobs)
    outcomes = train_together(jobs)
    assert not any(outcome.is_stacked for outcome in outcomes)
    assert_same(outcomes, others)


def test_what_may_lie_in_one_stack_has_one_key(tables):
    job, *_ = jobs_of(StableNetClassifier, tables, RATES)

    def key(**params):
        return job_key(
            job._replace(estimator=clone(job.estimator).set_params(**params))
        )

    assert key() == key(lr=1.0, weight_decay=1.0, clip_norm=None, random_state=7)
    assert key(optimizer__betas=(0.5, 0.9)) == key(optimizer__betas=(0.9, 0.99))
    assert key() != key(module__width=8)
    assert key() != key(batch_size=16)
    assert key(callbacks=[object()]) is None
    assert key(verbose=2) is None
    assert key() != job_key(job._replace(X=job.X[:50]))


def test_memory_limits_how_many_are_trained_at_once(tables):
    jobs = jobs_of(StableNetClassifier, tables, RATES)
    others = fitted_alone(jobs)
    outcomes = train_together(jobs, max_memory=1)
    assert not any(outcome.is_stacked for outcome in outcomes)
    assert_same(outcomes, others)


def test_the_callers_generator_is_left_as_it_was(tables):
    state = torch.get_rng_state()
    train_together(jobs_of(StableNetClassifier, tables, RATES))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_first_estimator_learns_of_the_rows_the_others_know_too(tables):
    X, y = tables[0]
    frame = pd.DataFrame(X, columns=list("abcde"))
    column = (y > 0).astype(int)[:, None]
    jobs = [
        Job(StableNetClassifier(max_epochs=2, lr=lr, random_state=0), frame, column, {})
        for lr in (1e-3, 1e-2, -1.0)
    ]
    *outcomes, refused = train_together(jobs)
    for outcome in outcomes:
        assert outcome.is_stacked
        assert outcome.estimator.feature_names_in_.tolist() == list("abcde")
        assert outcome.estimator.classes_.tolist() == [0, 1]
        assert [w.category for w in outcome.warnings] == [DataConversionWarning]
    with pytest.raises(ValueError, match="lr") as alone:
        clone(jobs[2].estimator).fit(frame, column)
    assert str(refused.error) == str(alone.value)


class Whitened(nn.Module):
    """Raises where a weight is not finite: the decomposition does not exist."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.mix = nn.Linear(n_features_in, 3)
        self.head = nn.Linear(3, n_outputs)

    def forward(self, x):
        h = self.mix(x)
        root = torch.linalg.cholesky(torch.eye(3) + h.T @ h / len(h))
        return self.head(torch.linalg.solve_triangular(root, h.T, upper=False).T)


def test_a_module_that_raises_for_one_slice_leaves_the_others_their_training(tables):
    settings = [{"lr": 1e-3}, {"lr": 1e-2}, {"lr": 1e9}]
    common = {"module": Whitened, "clip_norm": None, "on_nonfinite": "raise"}
    jobs = jobs_of(StableNetClassifier, tables[:1], settings, **common)
    with pytest.raises(Exception) as alone:  # noqa: PT011
        clone(jobs[2].estimator).fit(jobs[2].X, jobs[2].y)
    others = fitted_alone(jobs[:2])
    *outcomes, wild = train_together(jobs)
    assert_same(outcomes, others)
    assert type(wild.error) is type(alone.value)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh"])
def test_every_way_through_a_chain(tables, activation):
    # A last batch of another size, a loss on rows held out, and dropout beside none.
    common = {
        "module__activation": activation,
        "module__width": 16,
        "early_stopping": True,
        "batch_size": 48,
        "max_epochs": 4,
    }
    settings = [
        {"lr": lr, "module__dropout": p, "random_state": seed}
        for lr, p, seed in [(1e-3, 0.3, 0), (1e-2, 0.1, 0), (1e-3, 0.3, 1)]
    ]
    jobs = jobs_of(StableNetClassifier, tables, settings, **common)
    assert_same(train_together(jobs), fitted_alone(jobs))
