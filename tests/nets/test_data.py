"""Targets that a criterion can or cannot learn from."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import LabelEncoder
from skorch.dataset import Dataset, ValidSplit
from torch import nn
from torch.utils.data import TensorDataset

from sknan import (
    GuardedNet,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardedNetRegressor,
    NonFiniteDataError,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan._utils.outliers import check_outliers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4)).astype("float32")
FULL = np.stack([X[:, 0] - X[:, 1], 10 * X[:, 2] + 3], axis=1)
Y = FULL.copy()
Y[RNG.random(Y.shape) < 0.4] = np.nan


class Known(nn.MSELoss):
    """Mean squared error over the targets that are not missing."""

    def forward(self, output, target):
        known = ~target.isnan()
        return super().forward(output[known], target[known])


class OwnMSE(nn.Module):
    def forward(self, output, target):
        return ((output - target) ** 2).mean()


def network(criterion, n_outputs=2, **options):
    torch.manual_seed(0)
    settings = {"train_split": None, "verbose": 0, "max_epochs": 40, "lr": 0.01}
    return GuardedNet(
        nn.Linear,
        criterion=criterion,
        module__in_features=4,
        module__out_features=n_outputs,
        optimizer=torch.optim.Adam,
        batch_size=20,
        **settings | options,
    )


def test_a_criterion_of_the_user_may_leave_missing_targets_out():
    net = network(Known).fit(X, Y)
    assert net.nonfinite_reports_ == []
    assert r2_score(FULL[:, 0], net.predict(X)[:, 0]) > 0.95
    assert network(Known).fit(Dataset(X, Y)).nonfinite_reports_ == []


@pytest.mark.parametrize("module", [None, nn.Linear])
def test_estimators_accept_such_criteria_and_standardize_the_known_targets(module):
    names = {"module__in_features": 4, "module__out_features": 2} if module else {}
    net = StableNetRegressor(module, criterion=Known, lr=0.01, random_state=0, **names)
    assert r2_score(FULL, net.fit(X, Y).predict(X)) > 0.95
    np.testing.assert_allclose(net.target_mean_, np.nanmean(Y, axis=0), rtol=1e-5)
    np.testing.assert_allclose(net.target_scale_, np.nanstd(Y, axis=0), rtol=1e-5)
    ensemble = StableNetEnsembleRegressor(net, n_estimators=2, random_state=0)
    assert r2_score(FULL, ensemble.fit(X, Y).predict(X)) > 0.95


REFUSED = (
    f"y contains {np.isnan(Y).sum()} NaN values in 2 of 2 columns: 0 "
    f"({np.isnan(Y[:, 0]).sum()}, first at row {np.isnan(Y[:, 0]).argmax()}), 1 "
    f"({np.isnan(Y[:, 1]).sum()}, first at row {np.isnan(Y[:, 1]).argmax()}). A row "
    "without a finite target cannot be used for training: remove these rows from X and "
    "y."
)


@pytest.mark.parametrize("make", [network, lambda c: StableNetRegressor(criterion=c)])
def test_missing_targets_are_refused_if_the_criterion_does_not_leave_them_out(make):
    with pytest.raises(NonFiniteDataError) as caught:
        make(nn.MSELoss).fit(X, Y)
    assert str(caught.value) == REFUSED
    with pytest.raises(NonFiniteDataError) as caught:
        make(OwnMSE).fit(X, Y)
    assert str(caught.value) == (
        f"{REFUSED} Or let the criterion leave missing targets out: its loss is not "
        "finite for them."
    )


@pytest.mark.parametrize(
    ("as_type", "net"),
    [
        (lambda cells: np.array(cells, object), GuardedNetRegressor),
        (pl.Series, GuardedNetRegressor),
        (pa.array, GuardedNetRegressor),
        (lambda cells: np.where(cells, "a", np.array(None)), GuardedNetClassifier),
        (lambda cells: pl.Series(cells).cast(pl.String), GuardedNetClassifier),
    ],
)
def test_missing_targets_are_found_in_arrays_of_every_library(as_type, net):
    y = as_type([2.0] * 150 + [None] * 150)
    with pytest.raises(NonFiniteDataError) as caught:
        net(nn.Linear, module__in_features=4, module__out_features=1).fit(X, y)
    assert str(caught.value) == (
        "y contains 150 NaN values at rows 150, 151, 152, 153, 154, 155, 156, 157, "
        ".... A row without a finite target cannot be used for training: remove these "
        "rows from X and y."
    )


LABELS = (X[:, :1] > 0).astype("float32")
CODES = LABELS.ravel().astype("int64")


@pytest.mark.parametrize(
    ("as_type", "net"),
    [
        (np.ndarray.tolist, GuardedNetClassifier),
        (lambda y: pd.DataFrame({"y": y}), GuardedNetClassifier),
        (lambda y: pl.Series(y).cast(pl.Int128), GuardedNetClassifier),
        (lambda y: pl.DataFrame({"y": y}), GuardedNetClassifier),
        (pa.array, GuardedNetClassifier),
        (lambda y: pa.table({"y": y}), GuardedNetClassifier),
        (lambda y: pl.DataFrame({"y": y}), GuardedNetRegressor),
        (lambda y: pa.record_batch({"y": y}), GuardedNetRegressor),
        (lambda y: pd.DataFrame({"y": y}), GuardedNetRegressor),
    ],
)
def test_targets_of_every_library_train_as_those_of_numpy(as_type, net):
    is_classifier = net is GuardedNetClassifier
    y = CODES if is_classifier else X[:, :1]
    shape = {
        "module__in_features": 4,
        "module__out_features": 2 if is_classifier else 1,
    }
    criterion = {"criterion": nn.CrossEntropyLoss} if is_classifier else {}
    options = {"max_epochs": 2, "verbose": 0, **shape, **criterion}
    weights = []
    for target in (y, as_type(y if is_classifier else y.ravel())):
        torch.manual_seed(0)
        weights.append(net(nn.Linear, **options).fit(X, target).module_.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("y", "found"),
    [
        (["b", "a"] * 150, "text, first 'b' at row 0"),
        (np.array([1.0, "a"] * 150, object), "text, first 'a' at row 1"),
        (pl.Series(["b", "a"] * 150, dtype=pl.Categorical), "text, first 'b' at row 0"),
        (pd.DataFrame({"y": ["2", "1"] * 150}), "text, first '2' at row 0"),
        (pd.Series(pd.date_range("2020", periods=300)), "dates, first 2020-01-01 00:0"),
        (pa.array([[1.0]] * 300), "ndarray, first [1.] at row 0"),
    ],
)
def test_targets_that_are_no_numbers_are_named(y, found):
    for net in (GuardedNetClassifier, GuardedNetRegressor):
        shape = {"module__in_features": 4, "module__out_features": 2}
        with pytest.raises(ValueError, match="y contains") as caught:
            net(nn.Linear, **shape).fit(X, y)
        message = str(caught.value)
        assert message.startswith(f"y contains {found}")
        if "text" in found and net is GuardedNetClassifier:
            assert message.endswith(
                ", but GuardedNetClassifier needs numbers. Pass sklearn.preprocessing."
                "LabelEncoder().fit_transform(y), or these labels to "
                "StableNetClassifier."
            )
        else:
            assert message.endswith(
                f", but {net.__name__} needs numbers. Pass numbers."
            )


@pytest.mark.parametrize("convert", [np.asarray, pd.Series, np.ndarray.tolist])
def test_a_binary_net_learns_integers_and_flags_as_floats(convert):
    outputs = []
    for y in (CODES.astype("float32"), LabelEncoder().fit_transform(CODES), CODES == 1):
        torch.manual_seed(0)
        net = GuardedNetBinaryClassifier(
            nn.Linear, module__in_features=4, module__out_features=1, verbose=0
        )
        target = y if y.dtype == "float32" else convert(y)
        outputs.append(net.set_params(max_epochs=2).fit(X, target).forward(X))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


class OwnLabels(GuardedNetClassifier):
    def get_loss(self, y_pred, y_true, *args, **kwargs):
        codes = torch.tensor([label == "b" for label in y_true]).long()
        return super().get_loss(y_pred, codes, *args, **kwargs)


def test_a_loss_of_the_user_may_read_text():
    y = np.where(CODES, "b", "a")
    net = OwnLabels(
        nn.Linear,
        module__in_features=4,
        module__out_features=2,
        criterion=nn.CrossEntropyLoss,
        max_epochs=30,
        lr=0.1,
        verbose=0,
        train_split=None,
    )
    assert (net.fit(X, y).predict(X) == CODES).mean() > 0.9


def test_labels_outside_the_domain_of_a_logistic_loss_are_refused():
    with pytest.raises(NonFiniteDataError) as caught:
        network(nn.BCEWithLogitsLoss, 1).fit(X, LABELS + 1)
    first = int((LABELS + 1).argmax())
    assert str(caught.value) == (
        f"criterion=BCEWithLogitsLoss needs y between 0 and 1, but it is 2 at row "
        f"{first}. It contains 1, 2: code the two classes as 0 and 1."
    )
    assert network(nn.BCEWithLogitsLoss, 1).fit(X, LABELS).nonfinite_reports_ == []
    tensors = TensorDataset(torch.from_numpy(X), torch.from_numpy(LABELS + 1))
    with pytest.raises(NonFiniteDataError, match="It contains 1, 2: code the two"):
        network(nn.BCEWithLogitsLoss, 1).fit(tensors, None)


@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        (nn.BCELoss, torch.from_numpy(LABELS) - 1),
        (nn.MultiLabelSoftMarginLoss, LABELS * 255),
        (nn.SoftMarginLoss, LABELS),
        (nn.HingeEmbeddingLoss, LABELS),
        (nn.PoissonNLLLoss, LABELS - 1),
        (nn.KLDivLoss, LABELS - 0.5),
    ],
)
def test_targets_outside_the_domain_of_a_loss_are_refused(criterion, target):
    with pytest.raises(NonFiniteDataError, match=f"criterion={criterion.__name__} nee"):
        network(criterion, 1).fit(X, target)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.MultiMarginLoss])
@pytest.mark.parametrize("first", [-1, 1])
def test_classes_that_are_not_coded_from_0_are_refused(criterion, first):
    outside = (CODES + first < 0) | (CODES + first > 1)
    with pytest.raises(NonFiniteDataError) as caught:
        network(criterion).fit(X, CODES + first)
    assert str(caught.value) == (
        f"criterion={criterion.__name__} needs labels from 0 to 1 for the 2 outputs of "
        f"the module, but y contains {-1 if first < 0 else 2} in {outside.sum()} of "
        f"300 rows, first at row {outside.argmax()}. Code the classes from 0, or give "
        "the module more outputs."
    )


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
def test_a_few_labels_out_of_range_are_left_out_and_ignored_ones_are_ignored():
    codes = CODES.copy()
    codes[[5, 200]] = 255
    net = network(nn.CrossEntropyLoss, max_epochs=3).fit(X, codes)
    assert {row for r in net.nonfinite_reports_ for row in r.rows} == {5, 200}
    codes[CODES == 1] = -100
    codes[[5, 200]] = 0
    assert network(nn.CrossEntropyLoss).fit(X, codes).nonfinite_reports_ == []


class Masked(nn.BCEWithLogitsLoss):
    def forward(self, output, target):
        return super().forward(output[target >= 0], target[target >= 0])


@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        (nn.BCEWithLogitsLoss, LABELS * 1.0000001),  # rounded
        (nn.BCEWithLogitsLoss, torch.from_numpy(LABELS).bfloat16().float() * 0.9),
        (Masked, np.where(RNG.random((300, 1)) < 0.2, -1, LABELS).astype("float32")),
    ],
    ids=["rounded", "smoothed", "masked"],
)
def test_targets_inside_the_domain_are_accepted(criterion, target):
    assert network(criterion, 1, max_epochs=2).fit(X, target).nonfinite_reports_ == []


def test_logarithms_are_targets_of_a_loss_that_takes_them():
    target = np.log(np.stack([LABELS[:, 0] * 0.8 + 0.1, 0.9 - LABELS[:, 0] * 0.8], 1))
    net = network(
        nn.KLDivLoss, criterion__log_target=True, criterion__reduction="batchmean"
    )
    assert net.fit(X, target.astype("float32")).nonfinite_reports_ == []


# -- outliers ----------------------------------------------------------------------

LINE = (X[:, :1] - X[:, 1:2]).astype("float32")
OUTLIER_REMEDY = (
    "Correct these targets, remove their rows from X and y, or choose a loss whose "
    "gradient is bounded, such as HuberLoss."
)
OUTLYING = (
    "y contains outliers at rows 7, 31. They dominate the loss, so that the network "
    f"learns little from the others. {OUTLIER_REMEDY}"
)
VANISHING = (
    "y contains values too large for float32 to distinguish the others at rows 7, 31. "
    f"{OUTLIER_REMEDY}"
)


def with_outliers(size):
    targets = LINE.copy()
    targets[[7, 31]] = size
    return targets


def regressor(criterion=nn.MSELoss, **options):
    torch.manual_seed(0)
    return GuardedNetRegressor(
        nn.Linear,
        criterion=criterion,
        module__in_features=4,
        module__out_features=1,
        optimizer=torch.optim.Adam,
        **{"train_split": None, "verbose": 0, "max_epochs": 2, "lr": 0.02} | options,
    )


@pytest.mark.parametrize("criterion", [nn.MSELoss, OwnMSE, nn.PoissonNLLLoss])
@pytest.mark.parametrize("size", [200.0, 1e6])
def test_targets_that_dominate_the_loss_are_named(size, criterion):
    targets = np.abs(with_outliers(size))
    with pytest.warns(UserWarning, match=f"^{re.escape(OUTLYING)}$"):
        regressor(criterion).fit(X, targets)


@pytest.mark.parametrize("size", [1e10, -3e18, -3e38])
@pytest.mark.parametrize("criterion", [nn.MSELoss, OwnMSE])
def test_targets_beside_which_the_others_vanish_are_refused(size, criterion):
    with pytest.raises(NonFiniteDataError, match=f"^{re.escape(VANISHING)}$"):
        regressor(criterion).fit(X, with_outliers(size))
    with pytest.raises(NonFiniteDataError, match="at rows 7, 31"):
        StableNetRegressor().fit(X, with_outliers(size)[:, 0])


def test_an_outlier_of_one_of_several_targets_is_named():
    targets = FULL.astype("float32")
    targets[12, 1] = 1e5
    with pytest.warns(UserWarning, match=r"columns: 1 \(1, first at row 12\)"):
        network(nn.MSELoss, max_epochs=1).fit(X, targets)


def test_outliers_in_rows_that_are_held_out_are_not_reported():
    targets = with_outliers(1e6)
    fold = np.full(300, -1)
    fold[[7, 31]] = 0
    held_out = {"train_split": ValidSplit(PredefinedSplit(fold))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(**held_out).fit(X, targets)
    targets[8] = 1e6
    with pytest.warns(UserWarning, match="^y contains outliers at row 8. They"):
        regressor(**held_out).fit(X, targets)


class OwnHuber(nn.Module):
    def forward(self, output, target):
        return nn.functional.huber_loss(output, target)


@pytest.mark.parametrize("criterion", [nn.HuberLoss, nn.L1Loss, OwnHuber])
def test_outliers_that_a_loss_bounds_are_not_reported(criterion):
    targets = with_outliers(-1e6)
    net = regressor(criterion, max_epochs=40, batch_size=20).fit(X, targets)
    assert r2_score(LINE, net.predict(X)) > 0.95


def test_the_rows_may_be_removed_as_the_message_advises():
    kept = np.delete(np.arange(len(X)), [7, 31])
    net = regressor(max_epochs=40, batch_size=20)
    net.fit(X[kept], with_outliers(1e6)[kept])
    assert r2_score(LINE, net.predict(X)) > 0.95


def test_targets_of_double_precision_have_more_digits():
    targets = with_outliers(1e10).astype("float64")
    net = regressor(module__dtype=torch.float64)
    with pytest.warns(UserWarning, match="^y contains outliers at rows 7, 31"):
        net.fit(X.astype("float64"), targets)


@pytest.mark.parametrize("n_rows", [50, 1000])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: np.exp(rng.normal(size=n)),
        lambda rng, n: 1e5 * np.exp(1.2 * rng.normal(size=n)),
        lambda rng, n: rng.standard_t(3, size=n),
        lambda rng, n: rng.pareto(3.0, size=n),
    ],
    ids=["lognormal", "prices", "t3", "pareto"],
)
def test_heavy_tails_are_no_outliers(draw, n_rows):
    for seed in range(20):
        values = draw(np.random.default_rng(seed), n_rows)
        check_outliers(values, np.arange(n_rows), name="y", effect="", remedy="")
