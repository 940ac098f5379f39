"""Expected gradients of networks, ensembles and pipelines."""

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import make_pipeline
from torch import nn

from sknan import (
    GuardedNetClassifier,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    TabularMLP,
    tabular_pipeline,
)
from sknan.inspection import AttributionDisplay, attributions
from sknan.inspection._expected_gradients import expected_gradients, places_between

QUICK = {"max_epochs": 8, "random_state": 0}


def messy_table(n_rows=300):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.normal(40, 10, n_rows),
            "city": rng.choice(["Rome", "Oslo", "Lima"], n_rows),
            "seen": pd.Timestamp("2020-01-01")
            + pd.to_timedelta(rng.integers(0, 900, n_rows), "D"),
            "empty": np.nan,
            "pay": rng.normal(0, 1, n_rows),
        }
    )
    y = (frame["pay"] + (frame["city"] == "Oslo") > 0.3).to_numpy()
    frame.loc[::5, "age"] = np.nan
    frame.loc[3, "pay"] = np.inf
    return frame, y


@pytest.fixture(scope="module")
def pipeline():
    X, y = messy_table()
    return tabular_pipeline(StableNetClassifier(**QUICK)).fit(X, y)


def sums(found):
    return found.values.sum(axis=1) + found.base_values


def test_a_linear_network_is_explained_exactly():
    X, y = load_diabetes(return_X_y=True)
    net = StableNetRegressor(nn.Linear(10, 1), **QUICK).fit(X, y)
    found = attributions(net, X, n_samples=3, random_state=0)
    inputs = net._network_rows(X).double().numpy()
    weights = net.net_.module_.weight.detach().double().numpy()[0]
    expected = (inputs - inputs.mean(axis=0)) * weights * net.target_scale_
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-5)
    assert found.sampling_error < 1e-4


def test_the_mean_of_gradients_is_the_integral_of_a_polynomial():
    # For f(x) = sum of x_i^2 and the background b, the contribution is x_i^2 - b_i^2.
    rng = np.random.RandomState(0)
    rows = torch.from_numpy(rng.normal(size=(6, 3)))
    background = torch.from_numpy(rng.normal(size=(1, 3)))
    places = list(places_between(1, 1, 50, rng))
    mean, variance = expected_gradients(
        [lambda x: (2 * x)[None]], rows, background, places
    )
    torch.testing.assert_close(mean[0], rows**2 - background**2)
    assert (variance >= 0).all()


def test_smooth_networks_agree_with_integrated_gradients_of_each_background_row():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    rows, background = torch.randn(2, 3).double(), torch.randn(4, 3).double()

    def gradient(x):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(module(leaf).sum(), leaf)[0][None]

    def integrated(row, base):
        points = ((torch.arange(400) + 0.5) / 400).double()[:, None]
        return (row - base) * gradient(base + points * (row - base))[0].mean(dim=0)

    expected = torch.stack(
        [torch.stack([integrated(r, b) for b in background]).mean(dim=0) for r in rows]
    )
    places = list(places_between(1, 4, 4000, np.random.RandomState(0)))
    mean, _ = expected_gradients([gradient], rows, background, places)
    torch.testing.assert_close(mean[0], expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "make",
    [
        StableNetClassifier,
        lambda **p: StableNetClassifier(criterion="binary_cross_entropy", **p),
        lambda **p: StableNetEnsembleClassifier(
            StableNetClassifier(**p), n_estimators=2
        ),
    ],
)
def test_contributions_to_a_probability_add_up(make):
    X, y = load_breast_cancer(return_X_y=True)
    labels = np.where(y, "benign", "malignant")
    model = make(**QUICK).fit(X, labels)
    found = attributions(model, X[:200], background=X, n_samples=20, random_state=0)
    assert found.output_names == ["malignant"]
    assert found.values.shape == (200, 30)
    np.testing.assert_allclose(
        sums(found), model.predict_proba(X[:200])[:, 1], atol=1e-6
    )
    other = attributions(
        model, X[:200], background=X, target="benign", n_samples=20, random_state=0
    )
    np.testing.assert_allclose(other.values, -found.values, atol=1e-5)
    logit = attributions(
        model, X[:200], background=X, response="logit", n_samples=20, random_state=0
    )
    if not hasattr(model, "estimators_"):
        p = model.predict_proba(X[:200]).astype(float)
        is_inside = p.min(axis=1) > 1e-3
        expected = np.log(p[:, 1] / p[:, 0])
        np.testing.assert_allclose(
            sums(logit)[is_inside], expected[is_inside], atol=1e-2
        )


@pytest.mark.parametrize("targets", [1, 2])
def test_contributions_are_in_the_units_of_the_target(targets):
    X, y = load_diabetes(return_X_y=True)
    y = 1000 * np.stack([y, -2 * y + 5], axis=1)[:, :targets].squeeze()
    model = StableNetEnsembleRegressor(StableNetRegressor(**QUICK), 2).fit(X, y)
    found = attributions(model, X, n_samples=10, random_state=0)
    np.testing.assert_allclose(sums(found), model.predict(X), rtol=1e-4)
    assert found.output_names == list(range(targets))


def test_targets_near_the_largest_float_have_finite_contributions():
    X, y = load_diabetes(return_X_y=True)
    net = StableNetRegressor(**QUICK).fit(X, y * 1e304)
    found = attributions(net, X, n_samples=5, random_state=0)
    np.testing.assert_allclose(sums(found), net.predict(X), rtol=1e-6)


def test_several_classes_have_contributions_for_each():
    X, y = load_iris(return_X_y=True, as_frame=True)
    net = StableNetClassifier(**QUICK).fit(X, y)
    found = attributions(net, X, n_samples=20, random_state=0)
    assert found.values.shape == (150, 4, 3)
    np.testing.assert_allclose(sums(found), net.predict_proba(X), atol=1e-6)
    frame = found.to_frame(1)
    assert list(frame) == list(X)
    np.testing.assert_array_equal(frame, found.values[:, :, 1])
    again = attributions(net, X, n_samples=20, random_state=0)
    np.testing.assert_array_equal(found.values, again.values)


def test_labels_of_a_row_have_contributions_for_each():
    X, y = load_iris(return_X_y=True)
    labels = np.stack([y > 0, y > 1], axis=1).astype(int)
    net = StableNetClassifier(**QUICK).fit(X, labels)
    found = attributions(net, X, n_samples=10, random_state=0)
    np.testing.assert_allclose(sums(found), net.predict_proba(X), atol=1e-6)


def test_a_pipeline_is_explained_by_the_columns_of_the_table(pipeline):
    X, _ = messy_table()
    shuffled = X[["pay", "empty", "seen", "city", "age"]]
    found = attributions(pipeline, shuffled, n_samples=40, random_state=0)
    assert found.feature_names == list(X)
    assert np.isfinite(found.values).all()
    np.testing.assert_allclose(sums(found), pipeline.predict_proba(X)[:, 1], atol=1e-6)
    assert set(found.importances.index[:2]) == {"pay", "city"}
    assert found.importances["empty"] == 0
    pd.testing.assert_frame_equal(found.data, X)


def test_one_row_is_explained_with_a_background(pipeline):
    X, _ = messy_table()
    every = attributions(pipeline, X, n_samples=30, random_state=0)
    one = attributions(pipeline, X[3:4], background=X, n_samples=30, random_state=0)
    np.testing.assert_allclose(one.values, every.values[3:4], atol=1e-5)


def test_infinite_derivatives_are_those_of_the_repaired_operations():
    class Root(nn.Module):
        def __init__(self, n_features_in, n_outputs):
            super().__init__()
            self.layer = nn.Linear(n_features_in, n_outputs)

        def forward(self, X):
            return self.layer(torch.sqrt(torch.relu(X)))

    X = np.random.default_rng(0).normal(size=(100, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = StableNetRegressor(Root, **QUICK).fit(X, X[:, 0])
        found = attributions(net, X, n_samples=20, random_state=0)
        np.testing.assert_allclose(sums(found), net.predict(X), atol=1e-4)
    assert np.isfinite(found.values).all()


def test_a_network_with_steps_is_reported():
    class Rounded(TabularMLP):
        def forward(self, X):
            return super().forward(torch.round(X))

    X, y = load_iris(return_X_y=True)
    net = StableNetClassifier(Rounded, **QUICK).fit(X, y)
    with pytest.warns(UserWarning, match=r"^The gradients explain little of the pred"):
        found = attributions(net, X)
    assert found.sampling_error > 0
    assert (found.values == 0).all()


def test_wrong_calls_say_what_to_pass(pipeline):
    X, _ = messy_table()
    with pytest.raises(ValueError, match="too few") as caught:
        attributions(pipeline, X[:1])
    assert str(caught.value) == (
        "X has 1 rows, too few to compare them with each other. Pass the rows that the "
        "model was trained on: attributions(model, X, background=X_train)."
    )
    with pytest.raises(
        ValueError, match=r"^target must be one of False, True, got 'a'"
    ):
        attributions(pipeline, X, target="a")
    with pytest.raises(
        ValueError, match=r"^n_samples must be an integer of at least 1"
    ):
        attributions(pipeline, X, n_samples=0)
    with pytest.raises(ValueError, match=r"^response must be 'prediction' or 'logit'"):
        attributions(pipeline, X, response="probability")
    with pytest.raises(ValueError, match=r"^response must be .*, got \['logit'\]\.$"):
        attributions(pipeline, X, response=["logit"])
    with pytest.raises(ValueError, match=r"^target must be .*, got array\(\[1, 2\]\)"):
        attributions(pipeline, X, target=np.array([1, 2]))
    data, target = load_iris(return_X_y=True)
    with pytest.raises(TypeError, match=r"^Expected a StableNet or GuardedNet"):
        attributions(DummyClassifier().fit(data, target), data)
    guarded = GuardedNetClassifier(
        nn.Linear(4, 3), criterion=nn.CrossEntropyLoss, max_epochs=1, verbose=0
    )
    guarded.fit(data.astype("float32"), target)
    with pytest.raises(TypeError, match=r"^attributions explains StableNet estimators"):
        attributions(guarded, data)
    net = StableNetRegressor(max_epochs=1).fit(data, target)
    with pytest.raises(ValueError, match=r"^response='logit' is for classifiers"):
        attributions(net, data, response="logit")


def test_the_advice_for_components_of_a_pca_works():
    X, y = load_iris(return_X_y=True)
    model = make_pipeline(PCA(2), StableNetClassifier(**QUICK)).fit(X, y)
    with pytest.raises(ValueError, match="pca0") as caught:
        attributions(model, X)
    assert str(caught.value) == (
        "2 inputs of the network, such as 'pca0', cannot be traced to columns of X. "
        "Explain the network by itself: attributions(model[-1], "
        "model[:-1].transform(X))."
    )
    found = attributions(model[-1], model[:-1].transform(X), n_samples=5)
    assert found.feature_names == ["x0", "x1"]


# -- display -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bar", "points", "row"])
def test_the_display_shows_the_largest_contributions(pipeline, kind):
    X, _ = messy_table()
    display = AttributionDisplay.from_estimator(
        pipeline, X, kind=kind, max_columns=3, n_samples=10, random_state=0
    )
    labels = [tick.get_text() for tick in display.ax_.get_yticklabels()]
    # A row has an order of its own, so that its labels are only counted.
    assert len(labels) == (4 if kind == "row" else 3)
    if kind == "row":
        assert labels[3] == "2 others"
        end = f"{pipeline.predict_proba(X[:1])[0, 1]:.3g}"
        assert display.ax_.get_xlabel().endswith(f"to the prediction {end}")
    else:
        assert labels == list(display.found.importances.index[:3])
    plt.close("all")


def test_the_display_of_several_classes_names_them():
    X, y = load_iris(return_X_y=True)
    net = StableNetClassifier(max_epochs=2, random_state=0).fit(X, y)
    display = AttributionDisplay.from_estimator(net, X, n_samples=5)
    texts = display.ax_.get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["0", "1", "2"]
    with pytest.raises(
        ValueError, match=r"^kind='row' shows one output: pass one of 0"
    ):
        display.plot(kind="row")
    with pytest.raises(ValueError, match=r"^kind must be one of 'bar', 'points', 'row"):
        display.plot(kind="pie")
    display.plot(kind="points", output=2)
    plt.close("all")
