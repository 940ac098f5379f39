"""Pickles of models: copies, files, workers, other versions, and other devices."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import types
import warnings
from importlib.metadata import version

import cloudpickle
import joblib
import numpy as np
import pytest
import sklearn
import skorch
import torch
from fresh_process import run_script
from sklearn.base import clone
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from skorch.exceptions import DeviceWarning
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sknan import (
    DivergenceWarning,
    GuardedNet,
    NaNImputer,
    NonFiniteTrainingError,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetRegressor,
    tabular_pipeline,
)

X = np.random.default_rng(0).normal(size=(40, 3))
LABELS = np.where(X[:, 0] > 0, "yes", "no")
VALUES = X[:, 0] - X[:, 1]

SMALL = {"max_epochs": 2, "module__width": 8, "random_state": 0}


def through_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    **{
        f"pickle{protocol}": lambda model, protocol=protocol: pickle.loads(
            pickle.dumps(model, protocol=protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "joblib": through_joblib,
    "cloudpickle": lambda model: pickle.loads(cloudpickle.dumps(model)),
    "deepcopy": copy.deepcopy,
}
MODELS = {
    "classifier": lambda: StableNetClassifier(**SMALL),
    "binary": lambda: StableNetClassifier(criterion="binary_cross_entropy", **SMALL),
    "regressor": lambda: StableNetRegressor(**SMALL),
    "early": lambda: StableNetRegressor(early_stopping=True, **SMALL),
    "adaptive": lambda: StableNetRegressor(
        adaptive_clip="quantile", lr_schedule="plateau", warm_start=True, **SMALL
    ),
    "pipeline": lambda: make_pipeline(
        NaNImputer(), SafeScaler(), StableNetClassifier(**SMALL)
    ),
    "search": lambda: GridSearchCV(
        make_pipeline(NaNImputer(), SafeScaler(), StableNetRegressor(**SMALL)),
        {"stablenetregressor__lr": [1e-3, 1e-2]},
        cv=2,
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_way = pytest.mark.parametrize("way", WAYS)


def table_for(model):
    return X if isinstance(model, StableNetClassifier | StableNetRegressor) else DAMAGED


DAMAGED = X.copy()
DAMAGED[3, 1] = np.nan
DAMAGED[7, 2] = np.inf


def target_for(name):
    return LABELS if name in ("classifier", "binary", "pipeline") else VALUES


def scores(model):
    method = getattr(model, "predict_proba", model.predict)
    return method(table_for(model))


def fitted(name):
    model = MODELS[name]()
    return model.fit(table_for(model), target_for(name))


# -- copies --------------------------------------------------------------------------


@every_way
@every_model
def test_a_copy_of_an_unfitted_model_fits_like_the_original(name, way):
    model = MODELS[name]()
    copied = WAYS[way](model)
    assert repr(copied) == repr(model)
    table, y = table_for(model), target_for(name)
    np.testing.assert_array_equal(
        scores(copied.fit(table, y)), scores(model.fit(table, y))
    )


@every_way
@every_model
def test_a_copy_of_a_fitted_model_predicts_like_the_original(name, way):
    model = fitted(name)
    copied = WAYS[way](model)
    np.testing.assert_array_equal(scores(copied), scores(model))
    # A copy of the copy also predicts the same.
    np.testing.assert_array_equal(scores(WAYS[way](copied)), scores(model))


@every_model
def test_a_clone_is_unfitted_and_fits_like_the_original(name):
    model = fitted(name)
    cloned = clone(model)
    assert not hasattr(cloned, "net_")
    table, y = table_for(model), target_for(name)
    np.testing.assert_array_equal(scores(cloned.fit(table, y)), scores(model))


@every_way
def test_a_copy_is_independent_of_the_original(way):
    model = fitted("regressor")
    before = scores(model)
    copied = WAYS[way](model)
    with torch.no_grad():
        for weight in copied.net_.module_.parameters():
            weight.zero_()
    np.testing.assert_array_equal(scores(model), before)


def test_every_attribute_is_restored():
    model = fitted("early")
    loaded = pickle.loads(pickle.dumps(model))
    assert set(vars(loaded)) == set(vars(model))
    assert loaded.get_params() == model.get_params()
    for name in ("n_iter_", "best_epoch_", "effective_lr_", "nonfinite_reports_"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.net_.history.to_list() == model.net_.history.to_list()


def test_prefixed_parameters_are_restored_and_cloned():
    loaded = pickle.loads(pickle.dumps(fitted("regressor")))
    assert loaded.module__width == 8
    assert clone(loaded).get_params()["module__width"] == 8


@pytest.mark.parametrize("way", ["pickle5", "deepcopy"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"ema_decay": 0.9, "adaptive_clip": "zscore", "optimizer": "rmsprop"},
        {"optimizer": "sgd", "optimizer__momentum": 0.9, "module": nn.Linear(3, 1)},
    ],
    ids=["adamw", "average", "instance"],
)
def test_a_copy_continues_training_like_the_original(way, params):
    settings = {**SMALL, "batch_size": 8, "warm_start": True, **params}
    if "module" in params:
        del settings["module__width"]
    model = copied = StableNetRegressor(**settings)
    for method in ("fit", "fit", "partial_fit", "partial_fit"):
        copied = WAYS[way](copied if copied is not model else clone(model))
        for each in (model, copied):
            getattr(each, method)(X, VALUES)
        np.testing.assert_array_equal(scores(copied), scores(model))
        assert copied.loss_curve_ == model.loss_curve_


def test_an_optimizer_of_another_kind_continues_with_new_moments():
    model = StableNetRegressor(**SMALL).partial_fit(X, VALUES)
    model.set_params(optimizer="sgd", lr=1e-30, weight_decay=0.0)
    before = scores(model)
    np.testing.assert_array_equal(scores(model.partial_fit(X, VALUES)), before)


def test_callbacks_continue_where_they_were():
    class Count(skorch.callbacks.Callback):
        def initialize(self):
            self.n_ = 0

        def on_epoch_end(self, net, **_):
            self.n_ += 1

    count = Count()
    model = StableNetRegressor(callbacks=[count], warm_start=True, **SMALL)
    model.fit(X, VALUES).fit(X, VALUES).partial_fit(X, VALUES)
    assert count.n_ == len(model.net_.history) == 5
    assert dict(model.net_.callbacks_)["Count"] is count


def test_a_rescued_model_keeps_its_reports():
    model = StableNetRegressor(lr=1e30, batch_size=8, **SMALL)
    with pytest.warns(DivergenceWarning):
        model.fit(X, VALUES)
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.nonfinite_reports_ == model.nonfinite_reports_
    assert loaded.effective_lr_ == model.effective_lr_ < 1e30


def test_an_error_from_a_worker_contains_the_report():
    model = StableNetRegressor(lr=1e30, batch_size=8, on_nonfinite="raise", **SMALL)
    with pytest.raises(NonFiniteTrainingError) as caught:
        joblib.Parallel(n_jobs=2)([joblib.delayed(model.fit)(X, VALUES)] * 2)
    assert caught.value.report is not None
    assert str(caught.value.report) == str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        {"lr_schedule": "one_cycle", "warmup": 0.1},
        {"adaptive_clip": "agc"},
        {"adaptive_clip": "zscore"},
        {"criterion": "huber", "criterion__delta": 2.0},
        {"criterion": nn.functional.mse_loss},
        {"criterion": nn.L1Loss()},
        {"optimizer": torch.optim.RMSprop},
        {"module": nn.Linear(3, 1)},
        {"verbose": 1},
    ],
    ids=lambda params: next(iter(params)),
)
def test_a_model_with_any_setting_can_be_pickled(params):
    params = {**SMALL, **params}
    if "module" in params:
        del params["module__width"]
    model = StableNetRegressor(**params).fit(X, VALUES)
    np.testing.assert_array_equal(
        scores(pickle.loads(pickle.dumps(model))), scores(model)
    )


def test_a_guarded_skorch_net_can_be_pickled():
    net = GuardedNet(
        nn.Linear,
        nn.MSELoss,
        module__in_features=3,
        module__out_features=1,
        lr_schedule="cosine",
        clip_norm=1.0,
        max_epochs=2,
        verbose=0,
    )
    table, y = X.astype("float32"), VALUES[:, None].astype("float32")
    loaded = pickle.loads(pickle.dumps(net.fit(table, y)))
    np.testing.assert_array_equal(loaded.predict(table), net.predict(table))
    loaded.partial_fit(table, y)


# -- other processes -----------------------------------------------------------------

READ_AND_PREDICT = """
import pickle, sys
import numpy as np
with open(sys.argv[1], "rb") as file:
    models, tables = pickle.load(file)
predictions = [
    getattr(model, "predict_proba", model.predict)(table)
    for model, table in zip(models, tables)
]
with open(sys.argv[2], "wb") as file:
    pickle.dump(predictions, file)
"""


def test_models_predict_the_same_in_a_new_process(tmp_path):
    models = [fitted(name) for name in MODELS]
    tables = [table_for(model) for model in models]
    inputs, outputs = tmp_path / "models.pkl", tmp_path / "predictions.pkl"
    inputs.write_bytes(pickle.dumps((models, tables)))
    script = tmp_path / "script.py"
    script.write_text(READ_AND_PREDICT)
    # Warnings are errors, so that loading an intact pickle must not warn.
    done = run_script(script, tmp_path / "output", inputs, outputs, action="error")
    assert done == (0, "")
    predictions = pickle.loads(outputs.read_bytes())
    for model, predicted in zip(models, predictions, strict=True):
        np.testing.assert_array_equal(predicted, scores(model))


SCRIPT_WITH_A_MODULE = """
import sys
import cloudpickle, numpy as np, torch
from sknan import StableNetClassifier

class OfThisScript(torch.nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = torch.nn.Linear(n_features_in, n_outputs)

    def forward(self, X):
        return self.linear(X)

def halved(progress):
    return 0.5

X = np.random.default_rng(0).normal(size=(40, 3))
net = StableNetClassifier(
    OfThisScript, lr_schedule=halved, max_epochs=2, random_state=0, warm_start=True
)
net.fit(X, X[:, 0] > 0)
with open(sys.argv[1], "wb") as file:
    cloudpickle.dump((net, X, net.predict_proba(X)), file)
"""


def test_a_model_of_a_script_goes_through_cloudpickle_into_a_new_process(tmp_path):
    file, script = tmp_path / "model.pkl", tmp_path / "script.py"
    script.write_text(SCRIPT_WITH_A_MODULE)
    done = run_script(script, tmp_path / "output", file, action="error")
    assert done == (0, "")
    model, table, predictions = pickle.loads(file.read_bytes())
    np.testing.assert_array_equal(model.predict_proba(table), predictions)
    model.fit(table, table[:, 0] > 0)  # training can continue


def test_a_shallow_copy_of_a_net_shares_its_module():
    net = fitted("regressor").net_
    assert copy.copy(net).module_ is net.module_
    assert copy.deepcopy(net).module_ is not net.module_


def test_models_predict_the_same_in_workers_of_loky():
    models = [fitted("classifier"), fitted("pipeline")]
    predictions = joblib.Parallel(n_jobs=2, backend="loky")(
        joblib.delayed(scores_in_worker)(model, table_for(model)) for model in models
    )
    for model, predicted in zip(models, predictions, strict=True):
        np.testing.assert_array_equal(predicted, scores(model))


def scores_in_worker(model, table):
    return model.predict_proba(table)


def test_read_only_tables_shared_with_workers_raise_no_warning(tmp_path):
    # joblib maps arrays above one megabyte into the memory of workers in this way.
    file = tmp_path / "table.npy"
    np.save(file, X.astype("float32"))
    shared = np.load(file, mmap_mode="r")
    assert not shared.flags.writeable
    model = StableNetRegressor(**SMALL).fit(shared, VALUES)
    code = "import sys, joblib; m, X = joblib.load(sys.argv[1], mmap_mode='r'); "
    file, script = tmp_path / "both.joblib", tmp_path / "script.py"
    joblib.dump((model, X.astype("float32")), file)
    script.write_text(code + "m.predict(X)")
    # A new process is needed, because torch warns of such a table only once.
    assert run_script(script, tmp_path / "output", file, action="error") == (0, "")


# -- size and content of pickles -----------------------------------------------------


def bytes_of_weights(model):
    return sum(p.numel() * p.element_size() for p in model.net_.module_.parameters())


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("estimator", [StableNetClassifier, StableNetRegressor])
def test_a_pickle_contains_the_weights_and_no_rows(estimator, early_stopping):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20_000, 10)).astype("float32")  # 800 KB
    weight = rng.uniform(1, 2, size=len(table))
    model = estimator(
        max_epochs=1,
        batch_size=2000,
        early_stopping=early_stopping,
        module__width=64,
        random_state=0,
    )
    model.fit(table, (table[:, 0] > 0).astype(int), sample_weight=weight)
    size = len(pickle.dumps(model))
    assert size <= 2 * bytes_of_weights(model) + 100_000
    assert table[:3].tobytes() not in pickle.dumps(model)


def test_the_pickle_of_a_wide_network_is_at_most_twice_the_size_of_its_weights():
    model = StableNetClassifier(module__width=700, max_epochs=3, random_state=0)
    model.fit(X, LABELS)
    assert len(pickle.dumps(model)) <= 2 * bytes_of_weights(model) + 100_000
    assert bytes_of_weights(model) > 1_900_000


def test_the_pickle_of_a_model_with_a_module_instance_is_not_larger():
    module = nn.Sequential(nn.Linear(3, 300_000), nn.ReLU(), nn.Linear(300_000, 2))
    model = StableNetClassifier(module, max_epochs=1, random_state=0).fit(X, LABELS)
    # The pickle contains the module of the caller and the trained one.
    assert len(pickle.dumps(model)) <= 2 * bytes_of_weights(model) + 100_000


def held_by(model):
    """Yield every object that a model holds, but no class, function or library."""
    found, seen = [model], set()
    while found:
        held = found.pop()
        code = (type, types.ModuleType, types.FunctionType, types.CodeType)
        if id(held) not in seen and not isinstance(held, code):
            seen.add(id(held))
            found += gc.get_referents(held)
            yield held


@pytest.mark.parametrize("kind", ["estimator", "early", "ensemble", "tabular"])
def test_a_fitted_model_holds_nothing_of_its_training(kind):
    net = StableNetClassifier(max_epochs=20, batch_size=8, random_state=0)
    model = {
        "estimator": net,
        "early": clone(net).set_params(early_stopping=True, scoring="accuracy"),
        "ensemble": StableNetEnsembleClassifier(net, n_estimators=2),
        "tabular": StableNetEnsembleClassifier(n_estimators=2),
    }[kind]
    model = make_pipeline(NaNImputer(), SafeScaler(), model)
    if kind == "tabular":
        model = tabular_pipeline(model[-1])
    model.fit(DAMAGED, LABELS)
    text = pickle.dumps(model)
    for word in (b"torch.optim", b"DataLoader", b"functools", b"deque", b"skorch"):
        assert word not in text
    kinds = (torch.optim.Optimizer, skorch.NeuralNet, skorch.callbacks.Callback)
    assert not [held for held in held_by(model) if isinstance(held, kinds)]
    networks = getattr(model[-1], "estimators_", [model[-1]])
    n_bytes = sum(map(bytes_of_weights, networks))
    assert len(text) <= n_bytes + 60_000


def test_a_long_history_is_small():
    model = StableNetRegressor(
        lr_schedule="constant", batch_size=4, max_epochs=300, random_state=0
    ).fit(X, VALUES)
    assert len(model.net_.history) == 300
    assert len(pickle.dumps(model)) <= 2 * bytes_of_weights(model) + 100_000


def test_refitting_does_not_enlarge_the_pickle():
    model = fitted("regressor")
    size = len(pickle.dumps(model))
    for _ in range(3):
        model.fit(X, VALUES)
    assert len(pickle.dumps(model)) <= size + 100


def test_a_warm_start_model_also_pickles_the_optimizer_and_no_rows():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20_000, 10)).astype("float32")
    model = StableNetRegressor(
        warm_start=True, max_epochs=1, batch_size=2000, random_state=0
    ).fit(table, table[:, 0])
    # Adam has two moments for each weight.
    assert len(pickle.dumps(model)) <= 4 * bytes_of_weights(model) + 100_000
    assert table[:3].tobytes() not in pickle.dumps(model)


def test_a_model_whose_fit_failed_contains_no_rows():
    table = np.random.default_rng(0).normal(size=(20_000, 10)).astype("float32")
    model = StableNetRegressor(warm_start=True, **SMALL).fit(table[:50], table[:50, 0])
    size = len(pickle.dumps(model))
    model.set_params(lr=1e30, on_nonfinite="raise", early_stopping=True)
    with pytest.raises(NonFiniteTrainingError):
        model.fit(table, table[:, 0])
    assert len(pickle.dumps(model)) <= size + 100_000


# -- other versions ------------------------------------------------------------------

INSTALLED = {
    "sknan": version("sknan"),
    "torch": torch.__version__,
    "scikit-learn": sklearn.__version__,
}


def pickled_with_other_versions(model, **others):
    """Pickle a model, and replace the recorded versions of some packages."""

    class Rewriter(pickle.Pickler):
        def reducer_override(self, thing):
            if type(thing) is not type(model):
                return NotImplemented
            function, args, state, *rest = thing.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            state = {**state, "_pickled_with": {**state["_pickled_with"], **others}}
            return (function, args, state, *rest)

    file = io.BytesIO()
    Rewriter(file).dump(model)
    return file.getvalue()


@pytest.mark.parametrize("package", INSTALLED)
@pytest.mark.parametrize("estimator", [StableNetClassifier, StableNetRegressor])
def test_loading_under_another_version_warns_like_scikit_learn(estimator, package):
    y = LABELS if estimator is StableNetClassifier else VALUES
    model = estimator(**SMALL).fit(X, y)
    state = pickled_with_other_versions(model, **{package: "0.0.1"})
    with pytest.warns(InconsistentVersionWarning) as caught:
        loaded = pickle.loads(state)
    # The net has a separate record, which was not edited, and does not warn.
    assert [w.message.estimator_name for w in caught] == [estimator.__name__]
    warning = caught[0].message
    assert warning.original_sklearn_version == f"{package} 0.0.1"
    assert warning.current_sklearn_version == f"{package} {INSTALLED[package]}"
    np.testing.assert_array_equal(scores(loaded), scores(model))


def test_the_warning_contains_the_package_and_both_versions():
    state = pickled_with_other_versions(fitted("regressor"), torch="1.0")
    with pytest.warns(InconsistentVersionWarning) as caught:
        pickle.loads(state)
    assert str(caught[0].message).startswith(
        "Trying to unpickle estimator StableNetRegressor from version torch 1.0 when "
        f"using version torch {torch.__version__}."
    )


def test_a_model_warns_once_per_package():
    # All objects in the pickle have the same old version.
    text = pickle.dumps(fitted("regressor"), protocol=0)
    record = f"V{torch.__version__}\n".encode()
    assert record in text
    old = text.replace(record, b"V1.0\n")
    with pytest.warns(InconsistentVersionWarning) as caught:
        pickle.loads(old)
    assert len(caught) == 1


@pytest.mark.parametrize("transformer", [NaNImputer(), SafeScaler()], ids=str)
def test_transformers_record_versions(transformer):
    text = pickle.dumps(transformer.fit(X), protocol=2)
    name = type(transformer).__name__
    state = transformer.__getstate__()
    assert "_pickled_with" in state or "_sklearn_version" in state, name
    assert text


def test_loading_under_the_same_versions_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(fitted("search")))


# -- other devices -------------------------------------------------------------------


def state_on_a_gpu(net):
    """Return the state of a net whose parameter ``device`` is a GPU."""
    net = copy.copy(net)
    net.device = "cuda"
    return net.__getstate__()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_network_trained_on_a_gpu_loads_without_a_gpu(warm_start):
    model = StableNetRegressor(warm_start=warm_start, **SMALL).fit(X, VALUES)
    before = scores(model)
    model.set_params(device="cuda")._fitted.device = "cuda"
    with pytest.warns(DeviceWarning, match="Loading on device"):
        again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(scores(again), before)
    assert again.net_.device == "cpu"
    again.partial_fit(X, VALUES)  # training can continue


def test_all_tensors_are_in_the_part_of_the_state_that_skorch_moves():
    # skorch moves registered tensors to another device; others would stay on the GPU.
    for model in (
        fitted("regressor"),
        fitted("adaptive"),
        fitted("early"),
        StableNetRegressor(nn.Linear(3, 1), max_epochs=1).fit(X, VALUES),
    ):
        state = state_on_a_gpu(model.net_)
        del state["__cuda_dependent_attributes__"]
        text = pickle.dumps(state)
        assert b"torch.storage" not in text
        assert b"_rebuild_tensor" not in text


class Normed(nn.Module):
    """Network with parametrized weights."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.hidden = weight_norm(nn.Linear(n_features_in, 8))
        self.head = spectral_norm(nn.Linear(8, n_outputs))

    def forward(self, X):
        return self.head(torch.relu(self.hidden(X)))


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_network_with_parametrized_weights_can_be_pickled(pickler):
    X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    model = StableNetClassifier(Normed, max_epochs=3, random_state=0).fit(X, y)
    again = pickle.loads(pickler.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert len(list(again.net_.module_.hidden.parametrizations.weight)) == 1
    assert again.partial_fit(X, y).predict_proba(X).shape == (60, 2)
