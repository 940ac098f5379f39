"""Contents of the HTML report, validity of its markup, and display in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from importlib.metadata import version

import matplotlib as mpl
import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sknan import (
    BatchedGridSearchCV,
    DivergenceWarning,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    report,
)

mpl.use("Agg")

CHROMIUM = shutil.which("chromium")
EVIL = "<script>alert('x')</script>&"


class Fragile(torch.nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.head = torch.nn.Linear(n_features_in, n_outputs)

    def forward(self, X):
        amount = torch.log(X[:, :1] + 1.4)  # <b>of a refund</b>
        return self.head(torch.cat([amount, X[:, 1:]], dim=1))


@pytest.fixture(scope="module")
def table():
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X = X.iloc[:200, :5]
    X = X.mask(np.random.default_rng(0).random(X.shape) < 0.1)
    X.columns = [EVIL, *X.columns[1:-1], "an_unbroken_name_" * 6]
    return X, y[:200]


@pytest.fixture(scope="module")
def model(table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        net = StableNetClassifier(
            Fragile, max_epochs=8, batch_size=64, random_state=7, early_stopping=True
        )
        return make_pipeline(NaNImputer(), SafeScaler(), net).fit(*table)


@pytest.fixture(scope="module")
def search(table):
    grid = {"stablenetclassifier__lr": [1e-3, 3e-2, 1e4]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = StableNetClassifier(max_epochs=4, random_state=0)
        pipeline = make_pipeline(NaNImputer(), SafeScaler(), net)
        return BatchedGridSearchCV(pipeline, grid, cv=2).fit(*table)


@pytest.fixture(scope="module")
def page(model, table, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*The module alone is not finite")
        report(model, *table, path=path)
    return path


def text_of(markup):
    return html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", markup, flags=re.S))


# -- contents --------------------------------------------------------------------


def test_the_page_has_sections_from_data_to_versions(page, model, table):
    markup = page.read_text(encoding="utf-8")
    text = text_of(markup)
    n_failed = len(model[-1].nonfinite_reports_)
    assert re.findall(r"<h[12]>(.*?)</h[12]>", markup) == [
        "Training of StableNetClassifier in a Pipeline",
        "Model",
        "Training data",
        "Audit",
        "Training",
        f"Incidents: {n_failed}",
        "Result",
        "Calibration",
        "Drift",
        "Parameters",
        "Versions and seeds",
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*The module alone is not finite")
        score = model.score(*table)
    n, fill = model[0].n_missing_[1], model[0].statistics_[1]
    shown = rf"mean texture\s+numbers\s+{n} \({n / 2:.1f} %\)\s+{fill:.6g}"
    assert re.search(shown, text)
    assert f"Score on the 200 rows given to this report: {score:.4g}." in text
    assert re.search(r"random_state of StableNetClassifier\s+7", text)
    assert re.search(rf"torch\s+{re.escape(version('torch'))}", text)


def test_the_page_says_which_rows_were_audited(page, table):
    which = "The audited rows are those that were given to this report."
    assert f"{which} {len(table[0])} rows" in text_of(page.read_text("utf-8"))


def test_an_incident_is_shown_with_its_source_line_and_remedy(page, model):
    first = model[-1].nonfinite_reports_[0]
    text = text_of(page.read_text(encoding="utf-8"))
    assert first.headline in text
    assert first.action in text
    assert first.recovery in text
    (shown,) = set(re.findall(r"^> +(\d+) (.*)$", text, re.M))
    assert (
        shown[1].strip() == "amount = torch.log(X[:, :1] + 1.4)  # <b>of a refund</b>"
    )
    assert first.source.endswith(f":{shown[0]}")


def test_text_from_the_data_is_escaped(page):
    markup = page.read_text(encoding="utf-8")
    assert "<script" not in markup
    assert "<b>of a refund" not in markup
    assert html.escape(EVIL) in markup


class Tags(HTMLParser):
    """Parser that checks that elements are closed and collects links."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_has_no_external_links(page):
    markup = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(markup)
    assert tags.open == []
    assert tags.links
    assert all(link.startswith("data:") for link in tags.links)
    assert "http" not in markup
    assert "@import" not in markup


def test_a_search_is_reported_with_its_candidates(search):
    found = report(search)
    text = text_of(found.to_html())
    assert f"Best mean score on the test folds: {search.best_score_:.4g}" in text
    assert "stablenetclassifier__lr=10000" in text
    assert "n recoveries" in text
    assert "were rescued" not in text
    assert "<h2>Audit</h2>" not in found.to_html()
    assert str(found).startswith(
        "StableNetClassifier in a BatchedGridSearchCV over a Pipeline: 4 epochs, no "
        "step failed."
    )


def test_recoveries_of_the_best_candidate_are_mentioned(table):
    net = StableNetClassifier(max_epochs=6, batch_size=16, random_state=0)
    pipeline = make_pipeline(NaNImputer(), SafeScaler(), net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        search = BatchedGridSearchCV(
            pipeline, {"stablenetclassifier__lr": [1e4]}, cv=2
        ).fit(*table)
    (rate,) = search.cv_results_["effective_lr"]
    assert (
        "Trainings of this candidate were rescued, and the lowest learning rate at "
        f"which one of them continued is {rate:.3g}: the score is not that of these "
        "parameters."
    ) in text_of(report(search).to_html())


def test_without_matplotlib_the_page_has_a_hint_instead_of_figures(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    markup = report(model).to_html()
    assert "<img" not in markup
    assert (
        "Install matplotlib to see a figure here: pip install 'sknan[plot]'."
    ) in text_of(markup)


def test_a_report_is_printed_displayed_and_saved(model, tmp_path):
    found = report(model)
    assert str(found) == repr(found)
    assert found._repr_html_() in found.to_html()
    assert "<html" not in found._repr_html_()
    found.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == found.to_html()
    assert found.to_html() == report(model).to_html()


def test_an_ensemble_is_reported_network_by_network():
    X, y = load_breast_cancer(return_X_y=True)
    network = StableNetClassifier(module__width=8, lr=1e4, max_epochs=3)
    ensemble = StableNetEnsembleClassifier(network, n_estimators=2, random_state=0)
    model = make_pipeline(SafeScaler(), ensemble)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        model.fit(X, y)
    n_failed = len(ensemble.nonfinite_reports_)

    found = report(model)
    caption = f"2 networks, 3 epochs, {n_failed} steps failed and rescued"
    start = f"StableNetEnsembleClassifier in a Pipeline: {caption}, learning rate"
    assert n_failed > 1
    assert str(found).startswith(start)
    assert "network 2" in found._repr_html_()
    assert captions_of(model)[0].startswith(caption)
    assert "2 networks" not in clone(ensemble)._repr_html_()
    assert f"Incidents: {n_failed}" in found._repr_html_()
    with pytest.raises(NotFittedError):
        report(StableNetEnsembleClassifier())


def test_a_model_without_a_training_is_refused():
    with pytest.raises(NotFittedError):
        report(StableNetClassifier())
    with pytest.raises(TypeError, match="got LogisticRegression"):
        report(LogisticRegression())


def test_no_figure_is_left_open(model):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    report(model)
    assert plt.get_fignums() == before


# -- below scikit-learn's diagram ---------------------------------------------------


def test_a_fitted_estimator_shows_its_training_below_the_diagram(model):
    net = model[-1]
    shown = net._repr_html_()
    assert "sk-top-container" in shown
    assert "Training summary" in shown
    assert "rescued" in shown
    assert net._repr_mimebundle_()["text/html"].count("Training summary") == 1
    assert "Training summary" not in StableNetClassifier()._repr_html_()
    with config_context(display="text"):
        assert not hasattr(net, "_repr_html_")


def captions_of(model):
    return re.findall('<div class="caption">(.*?)</div>', model._repr_html_())


def test_the_diagram_of_a_pipeline_says_how_the_training_went(model):
    net = model[-1]
    (caption,) = captions_of(model)
    assert caption == (
        f"{net.n_iter_} epochs, {len(net.nonfinite_reports_)} steps failed and rescued"
        f", learning rate {net.effective_lr_:.3g} in the end"
    )
    assert captions_of(clone(model)) == []


def test_the_diagram_of_a_search_says_what_became_of_the_candidates(search):
    shown = text_of(search._repr_html_())
    assert "candidates 3, 1 rescued, 0 failed" in " ".join(shown.split())
    best = search.best_params_["stablenetclassifier__lr"]
    assert f"stablenetclassifier__lr={best}: no step failed" in shown
    assert captions_of(search) == ["4 epochs, no step failed"]
    assert "rescued" not in clone(search)._repr_html_()


# -- in a browser --------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="there is no chromium (Debian: apt-get install chromium; .ci/run does)",
)

# Script that is inserted into a copy of the page and records what the browser shows.
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement, shown = [...document.querySelectorAll("img")];
  const ink = getComputedStyle(document.querySelector(".sknan-report"));
  root.setAttribute("data-probe", JSON.stringify({
    width: innerWidth, needed: root.scrollWidth, height: root.scrollHeight,
    pictures: shown.map(s => Math.round(s.getBoundingClientRect().width)),
    fetched: performance.getEntriesByType("resource").map(e => e.name),
    color: ink.color, background: ink.backgroundColor}));
});</script>"""


def opened(page, tmp_path, width, *options):
    """Return measures of a page opened in chromium, and the lines of its console."""
    assert CHROMIUM is not None
    inner = tmp_path / "page.html"
    markup = page.read_text(encoding="utf-8")
    inner.write_text(markup.replace("</head>", f"{PROBE}</head>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    # Windows of chromium have a minimum width, but frames have none.
    frame.write_text(
        f'<body style="margin:0"><iframe src="page.html" style="border:0" '
        f'width="{width}" height="900"></iframe>'
        "<script>addEventListener('load', () => document.body.append("
        "document.querySelector('iframe').contentDocument.documentElement"
        ".getAttribute('data-probe')))</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'own'}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000"),
            *options,
            *("--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    (probe,) = re.findall(r"\{.*\}", html.unescape(done.stdout))[-1:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(probe), console


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_without_errors_requests_or_horizontal_scrolling(
    page, tmp_path, width
):
    found, console = opened(page, tmp_path, width)
    assert console == []
    assert found["fetched"] == []
    assert found["width"] == width
    assert found["needed"] <= width
    assert len(found["pictures"]) == 2
    assert all(300 < picture <= min(width, 700) for picture in found["pictures"])
    assert found["height"] > 1000


@needs_chromium
def test_a_console_error_would_be_seen(page, tmp_path):
    broken = tmp_path / "broken.html"
    markup = page.read_text(encoding="utf-8")
    broken.write_text(markup.replace("</body>", "<script>nothing()</script></body>"))
    _, console = opened(broken, tmp_path, 400)
    assert "nothing is not defined" in console[0]


@needs_chromium
def test_the_page_follows_the_color_scheme_of_the_browser(page, tmp_path):
    (tmp_path / "light").mkdir()
    (tmp_path / "dark").mkdir()
    schemes = "--blink-settings=preferredColorScheme={}"
    dark, _ = opened(page, tmp_path / "dark", 800, schemes.format(0))
    light, _ = opened(page, tmp_path / "light", 800, schemes.format(1))

    def lightness(color):
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    assert lightness(light["background"]) > 200 > 60 > lightness(light["color"])
    assert lightness(dark["color"]) > 200 > 60 > lightness(dark["background"])


def test_a_missing_folder_is_refused_before_any_work(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    net = StableNetClassifier(max_epochs=1, random_state=0).fit(X, X[:, 0] > 0)
    path = tmp_path / "pages" / "net.html"
    with pytest.raises(FileNotFoundError) as refused:
        report(net, X, "no target", path=path)
    assert str(refused.value) == (
        f"report cannot write {str(path)!r}: there is no folder "
        f"{str(path.parent)!r}. Create it first."
    )


@pytest.mark.parametrize(
    ("params", "rule"),
    [({"path": 1}, "a path"), ({"license": 3}, "text or None")],
)
def test_invalid_parameters_are_refused_before_any_work(params, rule):
    X = np.random.default_rng(0).normal(size=(60, 3))
    net = StableNetClassifier(max_epochs=1, random_state=0).fit(X, X[:, 0] > 0)
    ((name, value),) = params.items()
    with pytest.raises(ValueError, match=name) as refused:
        report(net, X, "no target", **params)
    assert str(refused.value) == (
        f"The {name!r} parameter of report must be {rule}, got {value!r}."
    )
    with pytest.raises(ValueError, match="path") as refused:
        report(net).save(None)
    assert str(refused.value) == (
        "The 'path' parameter of HTMLReport.save must be a path, got None."
    )
