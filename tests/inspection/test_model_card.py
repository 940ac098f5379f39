"""Report as a model card: training data, scores, calibration, drift, and Markdown."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes
from sklearn.metrics import log_loss, mean_absolute_error, r2_score
from sklearn.pipeline import make_pipeline
from torch import nn

from sknan import (
    GuardedNet,
    NaNImputer,
    StableNetClassifier,
    StableNetRegressor,
    report,
    tabular_pipeline,
)
from sknan.inspection._report._evaluation import (
    _limits,
    _share,
    calibration_section,
    evaluate,
    score_table,
)
from sknan.inspection._report._markdown import as_markdown

RNG = np.random.default_rng(0)


def table(n_rows=200):
    frame = pd.DataFrame(
        {
            "age": RNG.normal(40, 10, n_rows).round(),
            "city": RNG.choice(["Rome", "Oslo", None], n_rows, p=[0.5, 0.3, 0.2]),
            "day": pd.Timestamp("2020-01-01")
            + pd.to_timedelta(RNG.integers(0, 500, n_rows), "D"),
            "empty": np.nan,
        }
    )
    frame.loc[::10, "age"] = -999
    return frame


FRAME = table()
LABELS = np.where(FRAME.age > 40, "old", "young")


@pytest.fixture(scope="module")
def model():
    net = StableNetClassifier(max_epochs=5, random_state=0, module__width=8)
    return tabular_pipeline(net).fit(FRAME, LABELS)


@pytest.fixture(scope="module")
def card(model):
    return report(model, FRAME, LABELS, license="mit").to_markdown()


def rows_of(card, title):
    """Return the rows of the first table of a section, as lists of cells."""
    section = card.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return cells[2:]


def test_the_columns_of_fit_are_listed_with_their_missing_cells(model, card):
    median = f"{np.median(FRAME.age[FRAME.age > 0]):g}"
    n = int(FRAME.city.isna().sum())
    assert "The model was fitted on 4 columns of 200 rows." in card
    assert rows_of(card, "Training data") == [
        ["age", "numbers", "-999", "20 (10.0 %)", median],
        ["city", "categories", "", f"{n} ({n / 2:.1f} %)", "encoded"],
        ["day", "dates", "", "0 (0.0 %)", "encoded"],
        ["empty", "dropped: no values", "", "200 (100.0 %)", "-"],
    ]
    assert model[0].n_missing_ == {"age": 20, "city": n, "day": 0, "empty": 200}


def test_columns_of_an_array_are_listed_by_number():
    X = RNG.normal(size=(60, 2))
    X[::10, 1] = np.inf
    net = StableNetRegressor(max_epochs=1, random_state=0)
    model = make_pipeline(NaNImputer(strategy="zero"), net).fit(X, X[:, 0])
    assert rows_of(report(model).to_markdown(), "Training data") == [
        ["0", "numbers", "", "0 (0.0 %)", "0"],
        ["1", "numbers", "", "6 (10.0 %)", "0"],
    ]


def test_the_model_is_described(model, card):
    n_weights = sum(p.numel() for p in model[-1].net_.module_.parameters())
    found = dict(rows_of(card, "Model"))
    assert found["task"] == "classification, 2 classes: old, young"
    assert found["weights"] == f"{n_weights} in 1 network"
    assert found["license"] == "mit"
    assert card.startswith(
        '---\nlibrary_name: "sknan"\nlicense: "mit"\n'
        'tags: ["sknan", "tabular-classification"]\n---\n\n# Training of'
    )


def ends(cell):
    return tuple(map(float, cell.split(" to ")))


def test_scores_of_classes_have_intervals(model, card):
    (_, accuracy, of_accuracy), (_, loss, of_loss) = rows_of(card, "Result")
    assert float(accuracy) == pytest.approx(model.score(FRAME, LABELS), rel=1e-3)
    expected = log_loss(LABELS, model.predict_proba(FRAME))
    assert float(loss) == pytest.approx(expected, rel=1e-3)
    for value, (low, high) in ((accuracy, ends(of_accuracy)), (loss, ends(of_loss))):
        assert low < float(value) < high


def test_the_interval_of_a_share_is_that_of_wilson():
    # statsmodels.stats.proportion.proportion_confint(8, 10, method="wilson")
    assert _share(np.arange(10) < 8) == ("0.8", "0.4902 to 0.9433")
    assert _share(np.ones(30, dtype=bool)) == ("1", "0.8865 to 1")


@pytest.fixture(scope="module", params=[1.0, 1e250], ids=["usual", "huge"])
def regression(request):
    X, y = load_diabetes(return_X_y=True)
    net = StableNetRegressor(max_epochs=5, random_state=0).fit(X, y * request.param)
    return net, X, y, request.param


def test_scores_of_numbers_do_not_overflow(regression):
    net, X, y, unit = regression
    markdown = as_markdown(score_table(evaluate(net, X, y * unit)))
    (_, r2, of_r2), (_, error, _) = rows_of(f"## Scores\n{markdown}", "Scores")
    predicted = net.predict(X) / unit
    assert float(r2) == pytest.approx(r2_score(y, predicted), abs=1e-4)
    low, high = ends(of_r2)
    assert low < float(r2) < high
    expected = mean_absolute_error(y, predicted)
    assert float(error) / unit == pytest.approx(expected, rel=1e-3)


def test_calibration_compares_predicted_means_with_observed_ones(regression):
    net, X, y, unit = regression
    found = as_markdown(calibration_section(evaluate(net, X, y * unit)))
    predicted, observed, interval, n_rows = rows_of(found, "Calibration")[-1]
    last = np.argsort(net.predict(X), kind="stable")[-int(n_rows) :]
    low, high = ends(interval)
    assert low / unit < y[last].mean() < high / unit
    assert float(observed) / unit == pytest.approx(y[last].mean(), rel=1e-3)
    assert float(predicted) == pytest.approx(net.predict(X)[last].mean(), rel=1e-3)


def test_calibration_compares_probabilities_with_shares(model, card):
    p, is_young = model.predict_proba(FRAME)[:, 1], LABELS == "young"
    lowest = np.argsort(p, kind="stable")[:20]
    predicted, observed, _, n_rows = rows_of(card, "Calibration")[0]
    assert "by groups of ascending probability of young." in card
    assert float(predicted) == pytest.approx(p[lowest].mean(), rel=1e-3)
    assert float(observed) == pytest.approx(is_young[lowest].mean(), rel=1e-3)
    assert n_rows == "20"


def test_calibration_of_quantiles_is_the_share_of_targets_below():
    X, y = load_diabetes(return_X_y=True)
    levels = {"criterion": "quantile", "criterion__quantile": [0.1, 0.9]}
    net = StableNetRegressor(max_epochs=5, random_state=0, **levels).fit(X, y)
    shares = (y[:, None] <= net.predict(X)).mean(axis=0)
    section = calibration_section(evaluate(net, X, y))
    found = rows_of(as_markdown(section), "Calibration")
    assert [row[0] for row in found] == ["0.1", "0.9"]
    np.testing.assert_allclose([float(row[1]) for row in found], shares, rtol=1e-3)


def test_limits_of_drift_contain_usual_batches_and_exclude_shifted_ones():
    frame = pd.DataFrame({"x": RNG.normal(size=500), "c": RNG.choice(["a", "b"], 500)})
    limits = {row[0]: row[1:] for row in _limits(frame, None, z=3.5)}
    assert list(limits) == [
        "x: missing cells",
        "x: median",
        "c: missing cells",
        f"c: share of {frame.c.mode()[0]}",
    ]
    here, low, high = map(float, limits["x: median"])
    assert here == pytest.approx(frame.x.median(), abs=0.02)
    batches = RNG.normal(size=(200, 1000))
    is_within = (low <= np.median(batches, axis=1)) & (
        np.median(batches, axis=1) <= high
    )
    assert is_within.mean() > 0.98
    assert not low <= np.median(batches[0]) + 0.5 <= high
    assert limits["c: missing cells"][1:] == ("0.0 %", "1.6 %")


def test_rare_categories_are_not_named(model):
    frame = FRAME.assign(city=[f"secret {i}" for i in range(len(FRAME))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of categories that fit has not seen
        drift = report(model, frame).to_markdown().split("## Drift")[1]
    assert "secret" not in drift


def test_a_net_without_a_score_is_reported_without_a_result():
    X = RNG.normal(size=(60, 2)).astype(np.float32)
    net = GuardedNet(nn.Linear, criterion=nn.MSELoss, max_epochs=1, verbose=0)
    net.set_params(module__in_features=2, module__out_features=1, train_split=None)
    net.fit(X, X[:, :1])
    titles = re.findall("^## (.*)$", report(net, X, X[:, 0]).to_markdown(), re.M)
    assert "Result" not in titles
    assert "Drift" in titles


def test_markdown_is_saved_and_takes_no_text_for_its_own(tmp_path, model):
    path = tmp_path / "README.md"
    found = report(model, path=path)
    assert path.read_text(encoding="utf-8") == found.to_markdown()
    assert "<table" not in found.to_markdown()
    markup = (
        "<h2>a|b</h2><p>_x_ a_b &lt;i&gt; [l](u)</p><pre>&lt;b&gt;*</pre>"
        "<table><tr><th>n</th><th>m*</th></tr><tr><td>1</td><td></td></tr></table>"
        '<img alt="Loss" src="data:">'
    )
    assert as_markdown(markup).split("\n\n") == [
        "## a\\|b",
        "\\_x\\_ a_b &lt;i> \\[l\\](u)",
        "```text\n<b>*\n```",
        "| n | m\\* |\n| --- | --- |\n| 1 |  |",
        "(Loss: see the figure in the HTML page.)\n",
    ]
