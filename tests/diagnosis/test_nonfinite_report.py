from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    NonFiniteReport,
    NonFiniteTrainingError,
    StableNetRegressor,
)
from sknan.diagnosis import diagnose, reproduce

RNG = np.random.default_rng(0)
X = np.abs(RNG.normal(size=(64, 3))).astype("float32") + 0.5
X[[5, 40], 1] = [0.0, -2.0]
Y = X.sum(1, keepdims=True)

REPORT = NonFiniteReport(
    "forward",
    "activation",
    "2 of 8 outputs are <non-finite>.",
    "Use another.",
    module="act",
    operation="aten.log",
    source="net.py:7",
    epoch=1,
    batch=2,
    rows=(3, 4),
    columns=("pay",),
    rows_in="data",
    recovery="The batch was left out.",
)


class Log(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.drop(self.norm(torch.log(x))))


def error_of_fit(**options):
    torch.manual_seed(0)
    net = GuardedNet(
        Log, nn.MSELoss, on_nonfinite="raise", train_split=None, verbose=0, **options
    )
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.fit(X, Y)
    return caught.value


# -- in words ------------------------------------------------------------------------


def test_a_report_prints_what_where_why_and_what_to_do():
    assert str(REPORT) == (
        "Non-finite output of aten.log in 'act' (net.py:7) at epoch 1, batch 2. 2 of 8 "
        "outputs are <non-finite>. To blame: rows 3, 4, column pay. Use another."
    )


def test_many_rows_are_counted():
    text = str(NonFiniteReport("loss", "loss", "E.", "A.", rows=tuple(range(30))))
    assert text == (
        "Non-finite loss. E. To blame: rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more "
        "of the batch. A."
    )


def test_the_table_for_notebooks_escapes_and_leaves_out_what_is_not_known():
    html = REPORT._repr_html_()
    assert html.startswith("<table><caption>Non-finite output</caption>")
    assert "2 of 8 outputs are &lt;non-finite&gt;." in html
    assert "The batch was left out." in html
    short = NonFiniteReport("loss", "loss", "E.", "A.")._repr_html_()
    assert "operation" not in short
    assert "what was done" not in short


def test_a_report_is_plain_data():
    fields = REPORT.to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert fields["rows"] == [3, 4]
    assert "capsule" not in fields


# -- as a capsule --------------------------------------------------------------------


def test_a_saved_report_reproduces_the_failure_elsewhere(tmp_path):
    report = error_of_fit().report
    report.save(tmp_path / "failure.pt")
    loaded = NonFiniteReport.load(tmp_path / "failure.pt")
    assert loaded == report
    assert loaded.capsule.parameters["lr"] == 0.01
    assert loaded.capsule.parameters["module"].endswith("Log")
    module = Log()
    state = torch.random.get_rng_state()
    found = reproduce(loaded, module, nn.MSELoss())
    assert torch.equal(state, torch.random.get_rng_state())
    same = ("phase", "cause", "module", "operation", "source", "evidence")
    for name in same:
        assert getattr(found, name) == getattr(report, name)
    assert found.rows_in == "batch"
    batch = loaded.capsule.inputs.numpy()
    assert {5, 40} >= set(report.rows)
    assert (batch[list(found.rows), 1] <= 0).all()


def test_nothing_in_the_file_is_run(tmp_path):
    error_of_fit().report.save(tmp_path / "failure.pt")
    contents = torch.load(tmp_path / "failure.pt", weights_only=True)
    assert set(contents) == {"format", "report", "capsule"}


def test_another_file_is_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is not a report of this version") as caught:
        NonFiniteReport.load(tmp_path / "other.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'other.pt'} is not a report of this version of sknan: its "
        "format is 99, not 1."
    )


def test_a_report_without_a_capsule_says_where_to_get_one(tmp_path):
    with pytest.raises(ValueError, match="no capsule to save") as caught:
        REPORT.save(tmp_path / "failure.pt")
    assert str(caught.value) == (
        "The report has no capsule to save. Only the first report of a training and "
        "the report of an error have one, and pickling removes it."
    )
    with pytest.raises(ValueError, match="no capsule"):
        reproduce(REPORT, Log(), nn.MSELoss())


def test_a_pickled_report_leaves_the_data_behind():
    report = error_of_fit().report
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert again.capsule is None
    assert report.capsule is not None


def test_of_many_reports_only_the_first_holds_a_capsule():
    model = StableNetRegressor(Log, max_epochs=4, batch_size=16, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        model.fit(X, Y.ravel())
    capsules = [r.capsule is not None for r in model.nonfinite_reports_]
    assert len(capsules) > 2
    assert capsules[0]
    assert not any(capsules[1:])


# -- diagnose ------------------------------------------------------------------------


def test_a_fitted_estimator_is_diagnosed_in_its_own_labels_and_names():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = StableNetRegressor(Log, max_epochs=2, random_state=0)
    with pytest.warns(DivergenceWarning):
        model.fit(frame, Y.ravel())
    report = diagnose(model, frame, Y.ravel())
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert (report.rows, report.columns, report.rows_in) == ((5, 40), ("b",), "data")
    sound = frame.drop(index=[5, 40])
    assert diagnose(model, sound, np.delete(Y.ravel(), [5, 40])) is None


def test_diagnosing_changes_nothing():
    torch.manual_seed(0)
    module, criterion = Log(), nn.MSELoss()
    module.head.weight.grad = torch.ones(1, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    module.eval()
    diagnose(module, criterion, X, Y)
    assert not module.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(module.head.weight.grad, torch.ones(1, 3))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_no_net_is_refused():
    with pytest.raises(TypeError) as caught:
        diagnose(nn.Linear(1, 1), X, Y)
    assert str(caught.value) == (
        "diagnose takes a module, a criterion, X and y, or an initialized net, X and "
        "y, got Linear. Call initialize() or fit() first."
    )
    with pytest.raises(TypeError) as caught:
        diagnose(X, Y)
    assert str(caught.value) == (
        "diagnose takes (module, criterion, X, y) or (net, X, y), got 2 arguments."
    )
    with pytest.raises(TypeError) as caught:
        diagnose(nn.Linear, nn.MSELoss, X, Y)
    assert str(caught.value) == (
        "diagnose takes a network, got the class Linear. Pass an instance."
    )
