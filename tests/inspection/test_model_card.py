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
from sknan.exceptions import NonFiniteDataError
from sknan.inspection._report._drift import _limits
from sknan.inspection._report._evaluation import evaluate
from sknan.inspection._report._markdown import as_markdown
from sknan.inspection._report._scores import _share, calibration_section, score_table

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
    scores, classes = rows_of(card, "Result")[:2], rows_of(card, "Result")[-2:]
    (_, accuracy, of_accuracy, most), (_, loss, of_loss, entropy) = scores
    shares = [np.mean(label == LABELS) for label in ("old", "young")]
    assert float(most) == pytest.approx(max(shares), rel=1e-3)
    constant = np.tile(shares, (len(LABELS), 1))
    assert float(entropy) == pytest.approx(log_loss(LABELS, constant), rel=1e-3)
    predicted = model.predict(FRAME)
    for label, (name, n, recall, _, precision, _) in zip(
        ("old", "young"), classes, strict=True
    ):
        is_class, is_predicted = label == LABELS, predicted == label
        assert (name, n) == (label, str(is_class.sum()))
        assert recall == f"{is_predicted[is_class].mean():.4g}"
        right = is_class[is_predicted]
        assert precision == (f"{right.mean():.4g}" if len(right) else "-")
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
    (_, r2, of_r2, _), (_, error, _, constant) = rows_of(
        f"## Scores\n{markdown}", "Scores"
    )
    predicted = net.predict(X) / unit
    assert float(r2) == pytest.approx(r2_score(y, predicted), abs=1e-4)
    low, high = ends(of_r2)
    assert low < float(r2) < high
    expected = mean_absolute_error(y, predicted)
    assert float(error) / unit == pytest.approx(expected, rel=1e-3)
    expected = mean_absolute_error(y, np.full(len(y), np.median(y)))
    assert float(constant) / unit == pytest.approx(expected, rel=1e-3)


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


ROWS = RNG.normal(size=(120, 2))
LINEAR = 3.0 * ROWS[:, 0]


@pytest.fixture(scope="module")
def net():
    return StableNetRegressor(max_epochs=1, random_state=0).fit(ROWS, LINEAR)


def test_labels_per_row_are_named_and_calibrated_one_by_one():
    y = pd.DataFrame({"rain": LINEAR > 0, "snow": LINEAR > 1}).astype(int)
    net = StableNetClassifier(max_epochs=1, random_state=0).fit(ROWS, y)
    found = report(net, ROWS, y).to_markdown()
    model, drift = dict(rows_of(found, "Model")), rows_of(found, "Drift")
    assert model["task"] == "classification, 2 labels per row: rain, snow"
    assert model["output"] == (
        "predict gives 0 or 1 for each label, predict_proba its probability, in this "
        "order"
    )
    assert [row[0] for row in drift[-3:]] == [
        "prediction: share of rain",
        "prediction: share of snow",
        "accuracy",
    ]
    assert drift[-2][1] == f"{100 * net.predict(ROWS)[:, 1].mean():.1f} %"
    groups = rows_of(found, "Calibration")
    assert [row[0] for row in groups] == ["rain"] * 10 + ["snow"] * 10
    assert sum(int(row[-1]) for row in groups[:10]) == len(ROWS)
    p = np.sort(net.predict_proba(ROWS)[:, 1])[:12].mean()
    assert float(groups[10][1]) == pytest.approx(p, rel=1e-3)
    assert "Each row is counted once for each label." in found
    assert (
        "This holds for the predictions and the accuracy only if the model was not "
        "trained on the rows given to this report."
    ) in found


def test_each_target_has_scores_in_its_unit_and_quantiles_of_its_own():
    y = pd.DataFrame({"price": LINEAR, "size": -100 * LINEAR})
    net = StableNetRegressor(max_epochs=1, random_state=0).fit(ROWS, y)
    found = report(net, ROWS, y).to_markdown()
    error = mean_absolute_error(y["size"], net.predict(ROWS)[:, 1])
    scores = {row[0]: row[1] for row in rows_of(found, "Result")}
    assert list(scores)[::2] == ["R2 of price", "R2 of size"]
    assert float(scores["mean absolute error of size"]) == pytest.approx(error, 1e-3)
    levels = {"criterion": "quantile", "criterion__quantile": [0.1, 0.9]}
    found = report(net.set_params(**levels).fit(ROWS, y), ROWS, y).to_markdown()
    assert dict(rows_of(found, "Model"))["task"] == "regression, quantiles 0.1, 0.9"
    drift = rows_of(found, "Drift")[-4:]
    assert drift[0][0] == "prediction of price, quantile 0.1: median"
    assert drift[3][0] == "prediction of size, quantile 0.9: median"
    is_below = y["size"] <= net.predict(ROWS)[:, 1, 0]
    of_size = rows_of(found, "Calibration")[2]
    assert of_size == ["size", "0.1", *_share(is_below), "120"]


@pytest.mark.parametrize("n_rows", [1, 120])
def test_r2_is_left_out_for_targets_that_do_not_differ(net, n_rows):
    rows, y = ROWS[:n_rows], np.full(n_rows, 0.1)
    found = report(net, rows, y).to_markdown()
    [(name, value, interval, _)] = rows_of(found, "Result")
    assert name == "mean absolute error"
    expected = mean_absolute_error(y, net.predict(rows))
    assert float(value) == pytest.approx(expected, rel=1e-3)
    assert (interval == "-") == (n_rows == 1)
    assert "R2 needs targets that differ." in found


def test_r2_has_an_interval_if_some_resamples_are_constant(net):
    rare = (np.arange(120) == 7).astype(float)
    markdown = as_markdown(score_table(evaluate(net, ROWS, rare)))
    (_, _, interval, _), _ = rows_of(f"## Scores\n{markdown}", "Scores")
    assert all(abs(end) < 1e4 for end in ends(interval))


NAN = np.where(np.isin(np.arange(120), [3, 7]), np.nan, LINEAR)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (
            None,
            LINEAR,
            "report was given y without X. Pass the rows of this target as X, or leave "
            "out y.",
        ),
        (
            ROWS[:0],
            LINEAR[:0],
            "X has no rows. Pass at least one row, or leave out X and y for a report "
            "of the training alone.",
        ),
        (
            ROWS,
            NAN,
            "y contains 2 NaN values at rows 3, 7. Remove these rows from X and y.",
        ),
        (
            ROWS,
            LINEAR[1:],
            "X has 120 rows, and y has 119. Pass one target for each row.",
        ),
        (
            ROWS,
            ROWS,
            "y has 2 columns, but the model was fitted on 1. Pass the target of fit "
            "for the rows of X.",
        ),
    ],
)
def test_a_target_that_does_not_fit_the_rows_is_refused(net, X, y, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        report(net, X, y)


def test_labels_that_fit_has_not_seen_are_named():
    labels = np.where(LINEAR > 0, "yes", "no")
    net = StableNetClassifier(max_epochs=1, random_state=0).fit(ROWS, labels)
    with pytest.raises(NonFiniteDataError) as refused:
        report(net, ROWS, [None, *labels[1:]])
    assert str(refused.value) == (
        "y contains 1 missing label, first at row 0. Remove these rows from X and y."
    )
    found = report(net, ROWS, np.where(np.arange(120) == 4, "new", labels))
    found = found.to_markdown()
    assert "log-loss" not in [row[0] for row in rows_of(found, "Result")]
    assert (
        "Labels of 1 row were not in fit: new. Such a row counts as an error in the "
        "accuracy, and the log-loss is left out."
    ) in found


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        (
            LINEAR > 0,
            np.where(LINEAR > 0, "1", "0"),
            f"y contains text, first {int(LINEAR[0] > 0)} at row 0, but the labels of "
            "fit are numbers, first False. Pass labels of the type of fit.",
        ),
        (
            np.where(LINEAR > 0, "b", "a").astype(object),
            np.arange(120) % 2,
            "y contains numbers, first 0 at row 0, but the labels of fit are text, "
            "first a. Pass labels of the type of fit.",
        ),
    ],
)
def test_labels_of_another_type_than_those_of_fit_are_refused(labels, given, message):
    net = StableNetClassifier(max_epochs=1, random_state=0).fit(ROWS, labels)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        report(net, ROWS, given)
    assert "Result" in report(net, ROWS, labels).to_markdown()


def test_limits_of_drift_contain_usual_batches_and_exclude_shifted_ones():
    frame = pd.DataFrame({"x": RNG.normal(size=500), "c": RNG.choice(["a", "b"], 500)})
    frame["flag"] = (frame.c == "a") * 1.0
    limits = {row[0]: row[1:] for row in _limits(frame, None, z=3.5)}
    assert list(limits) == [
        "x: missing cells",
        "x: median",
        "c: missing cells",
        f"c: share of {frame.c.mode()[0]}",
        "flag: missing cells",
        f"flag: share of {frame.flag.mode()[0]:g}",
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
