"""skorch's loggers, with the real packages, record what the guard did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skorch import NeuralNetRegressor
from skorch.callbacks import (
    MlflowLogger,
    NeptuneLogger,
    PrintLog,
    SacredLogger,
    TensorBoard,
    WandbLogger,
)

from sknan import DivergenceWarning, GuardedNetRegressor, StableNetRegressor
from sknan._engine.table_net import TableNet

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 5)).astype(np.float32)
Y = X @ RNG.normal(size=(5, 1)).astype(np.float32)

N_EPOCHS = 4


def guarded(logger):
    return GuardedNetRegressor(
        torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)
        ),
        lr=1e20,
        max_epochs=N_EPOCHS,
        batch_size=50,
        callbacks=[logger],
        verbose=0,
    )


def stable(logger):
    return StableNetRegressor(
        lr=1e20, max_epochs=N_EPOCHS, callbacks=[logger], random_state=0
    )


both = pytest.mark.parametrize("net_class", [guarded, stable])


def fitted(net_class, logger):
    torch.manual_seed(0)
    model = net_class(logger)
    with pytest.warns(DivergenceWarning):
        model.fit(X, Y)
    return getattr(model, "net_", model)


def recoveries_of(net):
    """Return the number of recoveries in each epoch, counted from the reports."""
    epochs = [report.epoch for report in net.nonfinite_reports_]
    assert epochs
    return [epochs.count(epoch) for epoch in range(1, N_EPOCHS + 1)]


ENTRIES = {"n_recoveries", "grad_norm", "clip_share", "clip_coefficient", "lr"}


def printed_columns(net_class, **options):
    lines = []
    net = net_class(
        torch.nn.Linear(5, 1),
        max_epochs=2,
        lr=1e-3,
        callbacks=[("printed", PrintLog(sink=lines.append, **options))],
        callbacks__print_log=None,
        **({"clip_norm": 1e-3} if net_class is GuardedNetRegressor else {}),
    )
    net.fit(X, Y)
    return lines[0].split()


@pytest.mark.parametrize("keys_ignored", [None, "dur", ["dur", "valid_loss"]])
def test_a_guarded_net_prints_the_columns_of_skorch(keys_ignored):
    columns = printed_columns(GuardedNetRegressor, keys_ignored=keys_ignored)
    assert columns == printed_columns(NeuralNetRegressor, keys_ignored=keys_ignored)


def test_entries_of_the_guard_are_printed_if_asked_for():
    columns = printed_columns(GuardedNetRegressor, keys_ignored=[])
    skorchs = printed_columns(NeuralNetRegressor)
    assert set(columns) == {*skorchs, *ENTRIES}
    columns = printed_columns(GuardedNetRegressor, keys_ignored=["lr", "grad_norm"])
    assert set(columns) == {*skorchs, *ENTRIES} - {"lr", "grad_norm"}


# Creating and initializing these loggers needs no connection to a service.
LOGGERS = {
    "Neptune": lambda keys: NeptuneLogger({}, keys_ignored=keys),
    "Weights & Biases": lambda keys: WandbLogger(None, keys_ignored=keys),
    "TensorBoard": lambda keys: TensorBoard(None, keys_ignored=keys),
    "Sacred": lambda keys: SacredLogger(None, keys_ignored=keys),
    "MLflow": lambda keys: MlflowLogger(object(), object(), keys_ignored=keys),
}


@pytest.mark.parametrize("logger_of", LOGGERS.values(), ids=LOGGERS)
@pytest.mark.parametrize("net_class", [GuardedNetRegressor, TableNet])
def test_each_logger_ignores_the_entries_of_the_guard(logger_of, net_class):
    for keys, hidden in [(None, ENTRIES), ("dur", {"dur", *ENTRIES}), ([], set())]:
        net = net_class(None, criterion=None, callbacks=[("logger", logger_of(keys))])
        logger = dict(net.initialize_callbacks().callbacks_)["logger"]
        assert logger.keys_ignored_ == {"batches", *hidden}


@both
def test_tensorboard_draws_the_recoveries(net_class, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is missing")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = fitted(net_class, TensorBoard(SummaryWriter(tmp_path), keys_ignored=[]))
    events = EventAccumulator(str(tmp_path)).Reload()

    def curve(name):
        points = events.Scalars(name)
        assert [point.step for point in points] == list(range(1, N_EPOCHS + 1))
        return [point.value for point in points]

    assert curve("n_recoveries") == recoveries_of(net)
    assert curve("n_recoveries") == net.history[:, "n_recoveries"]
    for name, tag in [("lr", "lr"), ("train_loss", "Loss/train_loss")]:
        assert np.allclose(curve(tag), net.history[:, name], rtol=1e-6)


@both
def test_mlflow_keeps_the_recoveries(net_class, tmp_path, monkeypatch):
    mlflow = pytest.importorskip(
        "mlflow", reason="the package mlflow (or mlflow-skinny) is missing"
    )
    # A recent MLflow writes plain files only if this is set.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())
    experiment = client.create_experiment(
        "sknan", artifact_location=(tmp_path / "artifacts").as_uri()
    )
    run = client.create_run(experiment)
    net = fitted(net_class, MlflowLogger(run, client, keys_ignored=[]))
    kept = client.get_metric_history(run.info.run_id, "n_recoveries")
    assert [(m.step, m.value) for m in kept] == list(
        enumerate(recoveries_of(net), start=1)
    )
    assert client.get_run(run.info.run_id).data.metrics["lr"] == net.history[-1, "lr"]
    assert list((tmp_path / "runs").rglob("n_recoveries"))  # in files
    assert list((tmp_path / "artifacts").rglob("params.pth"))


@both
def test_weights_and_biases_keeps_the_recoveries(net_class, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the package wandb is missing")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for folder in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{folder}_DIR", str(tmp_path / folder.lower()))
    settings = wandb.Settings(silent=True, console="off")
    with wandb.init(mode="offline", dir=tmp_path, settings=settings) as run:
        # By default it shows only the last value of a run.
        run.define_metric("n_recoveries", summary="first,last,max")
        net = fitted(net_class, WandbLogger(run, save_model=False, keys_ignored=[]))
        summary = dict(run.summary)
    recoveries = recoveries_of(net)
    shown = dict(summary["n_recoveries"])
    assert shown == {
        "first": recoveries[0],
        "last": recoveries[-1],
        "max": max(recoveries),
    }
    assert summary["_step"] == N_EPOCHS - 1
    assert summary["lr"] == net.history[-1, "lr"]
    (kept,) = tmp_path.rglob("*.wandb")
    assert b"n_recoveries" in kept.read_bytes()
