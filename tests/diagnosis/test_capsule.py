"""Saving, loading and reproducing a failed step."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from diagnosis_helpers import X_BAD, Y_BAD, NormalizedLog
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    NonFiniteReport,
    NonFiniteTrainingError,
    StableNetRegressor,
)
from sknan._utils.archive import load, save
from sknan.diagnosis import reproduce


def error_of_fit(**options):
    torch.manual_seed(0)
    net = GuardedNet(
        NormalizedLog,
        nn.MSELoss,
        on_nonfinite="raise",
        train_split=None,
        verbose=0,
        **options,
    )
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.fit(X_BAD, Y_BAD)
    return caught.value


def test_a_saved_report_reproduces_the_failure(tmp_path):
    report = error_of_fit().report
    report.save(tmp_path / "failure.pt")
    loaded = NonFiniteReport.load(tmp_path / "failure.pt")
    assert loaded == report
    assert loaded.capsule.parameters["lr"] == 0.01
    assert loaded.capsule.parameters["module"].endswith("NormalizedLog")
    module = NormalizedLog()
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


def test_the_file_is_a_weights_only_archive(tmp_path):
    error_of_fit().report.save(tmp_path / "failure.pt")
    contents = torch.load(tmp_path / "failure.pt", weights_only=True)
    assert set(contents) == {"format", "report", "capsule"}


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "other.pt"
    error_of_fit().report.save(path)
    kept, contents = path.read_bytes(), load(path)

    def with_field(part, name, value):
        return lambda: save({**contents, part: contents[part] | {name: value}}, path)

    for write in (
        lambda: torch.save({"format": "sknan report 1"}, path),
        lambda: save({"format": 99}, path),
        lambda: save({**contents, "report": {}}, path),
        lambda: save({**contents, "capsule": [1]}, path),
        lambda: save({**contents, "report": contents["report"] | {"phase": "x"}}, path),
        lambda: save({**contents, "report": contents["report"] | {"rows": 1}}, path),
        with_field("report", "rows", [torch.zeros(2)]),
        with_field("report", "columns", [0, None]),
        with_field("report", "operation", torch.zeros(2)),
        with_field("report", "epoch", "1"),
        with_field("report", "cause", "unknown"),
        with_field("capsule", "weights", {"module": {0: torch.zeros(2)}}),
        with_field("capsule", "versions", {"torch": 2}),
        lambda: path.write_text("notes" * 50),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(kept[:-1]),
        lambda: path.write_bytes(kept[:500] + b"!" + kept[501:]),
    ):
        write()
        with pytest.raises(ValueError, match=r"^The file ") as caught:
            NonFiniteReport.load(path)
        assert str(caught.value) == (
            f"The file {str(path)!r} is not a report of this version of sknan, or it "
            "is damaged. Write it again with report.save(path)."
        )


def test_a_report_without_a_capsule_cannot_be_saved_or_reproduced(tmp_path):
    report = NonFiniteReport("loss", "loss", "It is inf.", "Bound it.")
    with pytest.raises(ValueError, match="no capsule to save") as caught:
        report.save(tmp_path / "failure.pt")
    assert str(caught.value) == (
        "The report has no capsule to save. Only the first report of a training and "
        "the report of an error have one, and pickling removes it."
    )
    with pytest.raises(ValueError, match="no capsule"):
        reproduce(report, NormalizedLog(), nn.MSELoss())


def test_a_capsule_of_another_network_is_refused():
    report = error_of_fit().report
    with pytest.raises(ValueError, match="capsule") as caught:
        reproduce(report, nn.Linear(2, 1), nn.MSELoss())
    reason = str(caught.value.__cause__)
    assert str(caught.value) == (
        "The capsule cannot be run with this module and criterion: RuntimeError: "
        f"{reason}. Pass the module and the criterion of the failed training, or get "
        "an intact copy of the report."
    )


def test_a_pickled_report_has_no_capsule():
    report = error_of_fit().report
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert again.capsule is None
    assert report.capsule is not None


def test_only_the_first_report_of_a_training_has_a_capsule():
    model = StableNetRegressor(
        NormalizedLog, max_epochs=4, batch_size=16, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        model.fit(X_BAD, Y_BAD.ravel())
    capsules = [r.capsule is not None for r in model.nonfinite_reports_]
    assert len(capsules) > 2
    assert capsules[0]
    assert not any(capsules[1:])
