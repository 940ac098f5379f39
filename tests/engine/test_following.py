"""A stack serves callbacks that see whole epochs, and takes over what they change."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    EpochTimer,
    Freezer,
    GradientNormClipping,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    MlflowLogger,
    PassthroughScoring,
    PrintLog,
    ProgressBar,
    SacredLogger,
    TensorBoard,
    TrainEndCheckpoint,
    WandbLogger,
)

from sknan import (
    BackupAndRestore,
    BatchedGridSearchCV,
    StableNetClassifier,
    StableNetEnsembleClassifier,
)
from sknan._engine.callbacks import follows_epochs
from sknan._engine.network_state import read_state, write_state
from sknan._engine.plan import TrainingPlan

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 5)).astype(np.float32)
Y = (X[:, 0] + 0.5 * RNG.normal(size=600) > 0).astype(int)
N_EPOCHS = 6


class Batches(Callback):
    """Callback that sees single batches, and so needs the loop of the net."""

    def on_batch_end(self, net, **_):
        pass


class Noise(Callback):
    """Callback that draws random numbers, and predicts."""

    def on_train_begin(self, net, **_):
        torch.manual_seed(1)

    def on_epoch_end(self, net, **_):
        torch.manual_seed(2)
        torch.rand(3)
        net.predict(X)


class HalveRate(Callback):
    def on_epoch_end(self, net, **_):
        net.optimizer_.param_groups[0]["lr"] *= 0.5


class SetRate(Callback):
    def on_epoch_begin(self, net, **_):
        net.set_params(lr=0.01 / len(net.history))


class Decay(Callback):
    def on_epoch_end(self, net, **_):
        net.optimizer_.param_groups[0]["weight_decay"] = 0.5


class Shrink(Callback):
    def on_epoch_begin(self, net, **_):
        for weight in net.module_.parameters():
            weight.data.mul_(0.9)


class ForgetMoments(Callback):
    def on_epoch_end(self, net, **_):
        net.optimizer_.state.clear()


class ChangeAtEpoch(Callback):
    """Callback that changes more than numbers at the beginning or end of an epoch."""

    def __init__(self, method_name="on_epoch_end", at=2):
        self.method_name = method_name
        self.at = at

    def on_train_begin(self, net, **_):
        self._act("on_train_begin", net)

    def on_epoch_begin(self, net, **_):
        self._act("on_epoch_begin", net)

    def on_epoch_end(self, net, **_):
        self._act("on_epoch_end", net)

    def _act(self, method_name, net):
        if method_name == self.method_name and len(net.history) == self.at:
            self.change(net)


class Freeze(ChangeAtEpoch):
    def change(self, net):
        weight = next(net.module_.parameters())
        weight.requires_grad_(False)
        self.frozen_ = weight.detach().clone()


class CountGradients(ChangeAtEpoch):
    def change(self, net):
        self.gradients_ = []
        next(net.module_.parameters()).register_hook(self.gradients_.append)


class ClipLess(ChangeAtEpoch):
    def change(self, net):
        net.clip_norm = 0.05


def fitted(*callbacks, X=X, Y=Y, **options):
    named = [(f"callback{i}", callback) for i, callback in enumerate(callbacks)]
    options = {"max_epochs": N_EPOCHS, "lr": 0.01, "random_state": 0, **options}
    return StableNetClassifier(callbacks=named, **options).fit(X, Y)


@pytest.fixture
def loops(monkeypatch):
    """Return a list that has an entry for each training by the loop of a net."""
    found = []
    run_loop = TrainingPlan.run_loop

    def recorded(plan, rest=None):
        found.append(rest)
        return run_loop(plan, rest)

    monkeypatch.setattr(TrainingPlan, "run_loop", recorded)
    return found


def weights_of(model):
    return list(model.net_.module_.state_dict().values())


def assert_same(model, expected, atol=0.0):
    for found, other in zip(weights_of(model), weights_of(expected), strict=True):
        torch.testing.assert_close(found, other, rtol=0.0, atol=atol)


def rows_of(model):
    names = ("epoch", "train_loss", "lr", "grad_norm")
    return np.array(model.net_.history[:, names])


SERVED = [
    EpochTimer(),
    PrintLog(),
    EpochScoring("accuracy"),
    PassthroughScoring("train_loss", on_train=True),
    EarlyStopping(),
    Checkpoint(),
    TrainEndCheckpoint(),
    TensorBoard(None),
    MlflowLogger(object(), object()),
    SacredLogger(None),
    Noise(),
]
NOT_SERVED = [
    BatchScoring("accuracy"),
    ProgressBar(),
    GradientNormClipping(),
    LRScheduler(),
    Freezer("*"),
    InputShapeSetter(),
    LoadInitState(Checkpoint()),
    BackupAndRestore("file"),
    WandbLogger(None),
    MlflowLogger(object(), object(), log_on_batch_end=True),
    Batches(),
    object(),
]


@pytest.mark.parametrize("callback", SERVED, ids=lambda c: type(c).__name__)
def test_callbacks_of_epochs_are_served(callback):
    assert follows_epochs(callback)


@pytest.mark.parametrize("callback", NOT_SERVED, ids=lambda c: type(c).__name__)
def test_callbacks_of_steps_are_not_served(callback):
    assert not follows_epochs(callback)


def test_a_method_for_batches_may_be_an_attribute():
    callback = Callback()
    callback.on_batch_end = lambda *_, **__: None
    assert not follows_epochs(callback)


def test_callbacks_that_change_nothing_do_not_change_the_training(loops):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lines = []
    model = fitted(
        Noise(), EpochScoring("accuracy", on_train=True), PrintLog(sink=lines.append)
    )
    assert torch.equal(torch.rand(3), expected)
    assert_same(model, fitted())
    assert loops == []
    assert len(lines) == N_EPOCHS + 2
    assert all(row["dur"] > 0 for row in model.net_.history)


def test_batch_normalization_and_dropout_are_not_disturbed():
    module = torch.nn.Sequential(
        torch.nn.Linear(5, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(8, 2),
    )
    assert_same(fitted(Noise(), module=module), fitted(module=module))


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize(
    "kind", [HalveRate, SetRate, Decay, Shrink, ForgetMoments], ids=lambda k: k.__name__
)
def test_changed_numbers_are_taken_over(kind, early_stopping, loops):
    options = {"early_stopping": early_stopping}
    model = fitted(kind(), **options)
    assert loops == []
    expected = fitted(kind(), Batches(), **options)
    assert_same(model, expected, atol=2e-5)
    np.testing.assert_allclose(rows_of(model), rows_of(expected), rtol=1e-3)
    unchanged = fitted(early_stopping=early_stopping)
    assert not np.allclose(rows_of(model), rows_of(unchanged), rtol=1e-3)


# A clip that is set after the last step has no effect, about which there is a warning.
@pytest.mark.filterwarnings("ignore:clip_norm")
@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize(
    ("method_name", "at"),
    [
        ("on_train_begin", 0),
        ("on_epoch_begin", 1),
        ("on_epoch_begin", 3),
        ("on_epoch_end", 3),
        ("on_epoch_end", N_EPOCHS - 1),
        ("on_epoch_end", N_EPOCHS),
    ],
)
@pytest.mark.parametrize(
    "kind", [Freeze, CountGradients, ClipLess], ids=lambda k: k.__name__
)
def test_other_changes_continue_in_the_loop(
    kind, method_name, at, early_stopping, loops
):
    options = {"early_stopping": early_stopping, "lr_schedule": "plateau"}
    change, expected_change = kind(method_name, at), kind(method_name, at)
    model = fitted(change, **options)
    n_done = 0 if at == 0 else at - (method_name == "on_epoch_begin")
    assert [rest.n_epochs_done for rest in loops] == [n_done] * (n_done < N_EPOCHS)
    expected = fitted(expected_change, Batches(), **options)
    assert_same(model, expected, atol=2e-5)
    np.testing.assert_allclose(rows_of(model), rows_of(expected), rtol=1e-3)
    assert model.best_epoch_ == expected.best_epoch_
    if kind is CountGradients:
        assert len(change.gradients_) == len(expected_change.gradients_)
    if kind is Freeze and not early_stopping:
        assert torch.equal(change.frozen_, next(model.net_.module_.parameters()))


def test_a_training_that_continues_in_the_loop_keeps_its_reports(loops):
    change = ClipLess("on_epoch_end", 2)
    options = {"lr": 1e20, "early_stopping": False}
    with pytest.warns(UserWarning, match="Training failed"):
        model = fitted(change, **options)
    with pytest.warns(UserWarning, match="Training failed"):
        expected = fitted(ClipLess("on_epoch_end", 2), Batches(), **options)
    reports = [(r.epoch, r.cause) for r in model.nonfinite_reports_]
    assert reports == [(r.epoch, r.cause) for r in expected.nonfinite_reports_]
    assert reports[0][0] <= 2
    assert len(loops) == 2


def test_a_checkpoint_contains_the_optimizer(loops):
    file = io.BytesIO()
    checkpoint = Checkpoint(
        monitor=None,
        f_params=None,
        f_optimizer=file,
        f_criterion=None,
        f_history=None,
    )
    model = fitted(checkpoint, max_epochs=1, warm_start=True)
    assert loops == []
    file.seek(0)
    saved = torch.load(file)["state"]
    states = model.net_.optimizer_.state_dict()["state"]
    assert torch.equal(saved[0]["exp_avg"], states[0]["exp_avg"])
    assert saved[0]["exp_avg"].abs().sum() > 0


@pytest.mark.parametrize("others", [(), (Batches(),)], ids=["stack", "loop"])
def test_checkpoints_save_the_best_epochs(others, tmp_path):
    files = {"f_params": "{last_epoch[epoch]}.pt", "f_pickle": "net.pkl"}
    files["f_history"] = None  # loading it would remove the epochs after the best
    best = Checkpoint(dirname=str(tmp_path), load_best=True, **files)
    callbacks = [best, TrainEndCheckpoint(dirname=str(tmp_path)), *others]
    # The validation loss of random labels does not fall in each epoch.
    labels = np.random.default_rng(0).permutation(Y)
    model = fitted(*callbacks, Y=labels, lr=0.05, max_epochs=8, early_stopping=True)
    history = model.net_.history
    for name in ("train_loss", "valid_loss"):
        lowest = np.minimum.accumulate([np.inf, *history[:, name]])
        assert history[:, f"{name}_best"] == list(np.diff(lowest) < 0)
    assert history[:, "event_cp"] == history[:, "valid_loss_best"]
    assert not all(history[:, "event_cp"])
    saved = [row["epoch"] for row in history if row["event_cp"]]
    assert {f"{n}.pt" for n in saved} == {p.name for p in tmp_path.glob("[0-9]*.pt")}
    at_best = torch.load(tmp_path / f"{saved[-1]}.pt")
    for key, weight in model.net_.module_.state_dict().items():
        assert torch.equal(weight, at_best[key])
    assert (tmp_path / "train_end_params.pt").exists()
    net = pickle.loads((tmp_path / "net.pkl").read_bytes())
    np.testing.assert_array_equal(net.predict(X), model.predict(X))


def test_a_checkpoint_of_each_epoch_needs_no_validation_rows(loops, tmp_path):
    each = Checkpoint(monitor=None, dirname=str(tmp_path))
    model = fitted(each)
    start = LoadInitState(each)
    assert loops == []
    assert fitted(start).n_iter_ == 2 * N_EPOCHS
    assert model.net_.history[:, "event_cp"] == [True] * N_EPOCHS


def test_an_error_of_a_callback_ends_the_fit():
    class Fails(Callback):
        def on_epoch_end(self, net, **_):
            raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        fitted(Fails())


class Interrupted(torch.nn.Module):
    """Module that runs out of memory once, as soon as a file exists."""

    def __init__(self, path, n_features_in=5, n_outputs=2):
        super().__init__()
        self.path = path
        self.head = torch.nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        if self.path.exists():
            self.path.unlink()
            raise MemoryError("once")
        return self.head(x) + 0.0 * x.sum()


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_error_that_a_repetition_would_hide_ends_the_fit(
    tmp_path, loops, early_stopping
):
    path = tmp_path / "full"

    class Fill(Callback):
        def on_epoch_end(self, net, **_):
            if len(net.history) == 2:
                path.touch()

    with pytest.raises(MemoryError, match="once"):
        fitted(
            Fill(),
            module=Interrupted,
            module__path=path,
            early_stopping=early_stopping,
        )
    assert not loops


def test_early_stopping_by_a_callback_keeps_the_best_epoch(loops):
    rule = EarlyStopping(patience=2, threshold=0.5)
    model = fitted(rule, early_stopping=True, max_epochs=50, lr=1e-3)
    expected = fitted(rule, Batches(), early_stopping=True, max_epochs=50, lr=1e-3)
    assert len(loops) == 1
    assert model.n_iter_ == expected.n_iter_ < 50
    assert model.best_epoch_ == expected.best_epoch_ == model.n_iter_


def test_candidates_of_a_search_have_callbacks_of_their_own():
    callbacks = [
        EpochScoring("accuracy", lower_is_better=False, name="valid_acc"),
        EarlyStopping(monitor="valid_acc", lower_is_better=False, patience=2),
    ]
    net = StableNetClassifier(
        max_epochs=12, early_stopping=True, callbacks=callbacks, random_state=0
    )
    grid = {"lr": [1e-3, 3e-3, 1e-2]}
    batched = BatchedGridSearchCV(net, grid, cv=3).fit(X, Y)
    expected = GridSearchCV(net, grid, cv=3).fit(X, Y)
    assert all(batched.cv_results_["stacked"])
    for name in ("split0_test_score", "split2_test_score"):
        assert list(batched.cv_results_[name]) == list(expected.cv_results_[name])
    best = batched.best_estimator_
    assert best.n_iter_ == expected.best_estimator_.n_iter_
    assert not hasattr(callbacks[0], "best_score_")


def test_one_failing_callback_fails_one_candidate():
    search = BatchedGridSearchCV(
        StableNetClassifier(max_epochs=3, callbacks=[FailAt(0.01)], random_state=0),
        {"lr": [1e-3, 1e-2]},
        cv=2,
        refit=False,
    )
    with pytest.warns(UserWarning, match="non-finite"):  # noqa: SIM117
        with pytest.warns(FitFailedWarning, match="full disk"):
            search.fit(X, Y)
    is_nan = np.isnan(search.cv_results_["mean_test_score"])
    assert is_nan.tolist() == [False, True]


class FailAt(Callback):
    """Callback that raises in trainings at one learning rate."""

    def __init__(self, lr):
        self.lr = lr

    def on_epoch_end(self, net, **_):
        if net.lr == self.lr:
            raise RuntimeError("full disk")


def test_members_of_an_ensemble_are_scored():
    member = StableNetClassifier(
        max_epochs=3, callbacks=[EpochScoring("accuracy", on_train=True, name="acc")]
    )
    model = StableNetEnsembleClassifier(member, n_estimators=3, random_state=0)
    for fitted_member in model.fit(X, Y).estimators_:
        assert 0.5 < fitted_member.net_.history[-1, "acc"] <= 1.0


def test_moments_have_the_memory_layout_of_the_parameters():
    net = fitted(warm_start=True).net_
    state = read_state(net)
    turned = state._replace(
        moments=[
            [m.t().clone().t() if m.ndim == 2 else m for m in moment]
            for moment in state.moments
        ]
    )
    write_state(net, turned)
    for parameter in net.module_.parameters():
        moment = net.optimizer_.state[parameter]["exp_avg"]
        assert moment.stride() == parameter.stride()
