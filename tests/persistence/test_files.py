"""Files of models: what they contain, and what a damaged or hostile one does."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import pickle
import random
import sys
import tracemalloc
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from persistence_helpers import LABELS, NUMBERS, SETTINGS, LogNetwork, clean_table
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.metrics import fbeta_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    RepeatedStratifiedKFold,
    ShuffleSplit,
)
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier
from torch import nn, optim
from torch.ao.nn import quantized

import sknan
from sknan import (
    BatchedGridSearchCV,
    BatchedRandomizedSearchCV,
    GuardedNetRegressor,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    activations,
    tabular_pipeline,
)
from sknan._utils.archive import sealed, verified
from sknan.persistence import TRUSTED_TYPES, load, save
from sknan.preprocessing import TableCleaner

X = clean_table()
NET = StableNetRegressor(**SETTINGS)
RAW_UNITS = [{}, {"validation_split": KFold(3)}, {"validation_split": ShuffleSplit(2)}]


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(NaNImputer(), SafeScaler(), clone(NET)).fit(X, NUMBERS)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.skops"


def parts_of(file):
    """Return the parts of a file by name."""
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_parts(file, parts, compression=zipfile.ZIP_DEFLATED):
    """Write a file with a valid checksum, as an attacker would."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    file.write_bytes(sealed(data.getvalue()))


def refusal(file, **options):
    with pytest.raises(ValueError, match="The file") as caught:
        load(file, **options)
    return str(caught.value).replace(repr(str(file)), "FILE")


# -- what is written -----------------------------------------------------------------


def test_a_file_has_versions_names_of_columns_and_a_checksum(file):
    net = clone(NET).fit(sklearn_frame(), NUMBERS)
    save(net, file)
    about = json.loads(parts_of(file)["about.json"])
    assert about["versions"]["sknan"] == sknan.__version__
    assert about["feature_names"] == list("abcd")
    assert verified(file.read_bytes()) is not None
    assert load(file).feature_names_in_.tolist() == list("abcd")


def sklearn_frame():
    import pandas as pd

    return pd.DataFrame(X, columns=list("abcd"))


@pytest.mark.parametrize("kind", ["pipeline", "ensemble", "tabular"])
def test_a_file_is_not_much_larger_than_a_pickle(file, kind, pipeline):
    wide = clone(NET).set_params(module__width=64)
    model = {
        "pipeline": pipeline,
        "ensemble": StableNetEnsembleRegressor(wide, n_estimators=3),
        "tabular": tabular_pipeline(wide),
    }[kind]
    save(model.fit(sklearn_frame(), NUMBERS), file)
    assert file.stat().st_size <= 1.5 * len(pickle.dumps(model))


def test_a_file_has_the_formats_of_dates_and_written_numbers(file):
    days = [f"{day}.3.2020" for day in range(1, 29)]
    table = pd.DataFrame(
        {"day": days, "price": [f"1.{i},5 €" for i in range(200, 228)]}
    )
    cleaner = TableCleaner().fit(table)
    save(cleaner, file)
    pd.testing.assert_frame_equal(load(file).transform(table), cleaner.transform(table))


def test_parts_that_compress_too_well_are_stored(file):
    net = clone(NET).set_params(module__width=1100, module__depth=2).fit(X, NUMBERS)
    for weight in net.net_.module_.parameters():
        nn.init.zeros_(weight)
    save(net, file)
    assert file.stat().st_size > 4_000_000
    assert (load(file).predict(X) == net.predict(X)).all()


def test_a_failed_save_leaves_the_file(file, pipeline):
    save(pipeline, file)
    before = file.read_bytes()
    net = clone(NET).set_params(lr_schedule=lambda progress: 1.0).fit(X, NUMBERS)
    with pytest.raises(ValueError, match="cannot be saved") as caught:
        save(net, file)
    assert str(caught.value) == (
        f"StableNetRegressor cannot be saved: module {__name__!r} has no attribute "
        "'<lambda>'. Use classes and functions that can be imported, or pickle."
    )
    assert file.read_bytes() == before
    assert [found.name for found in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("model", [GuardedNetRegressor(nn.Linear), 3])
def test_other_objects_are_refused(file, model):
    with pytest.raises(ValueError, match="save writes") as caught:
        save(model, file)
    assert str(caught.value) == (
        "save writes estimators of scikit-learn and sknan, got "
        f"{type(model).__name__}. Use pickle, or save_params of a skorch net."
    )


CLASSIFIER = StableNetClassifier(**SETTINGS)
TREE = DecisionTreeClassifier(max_depth=1)
TO_BOTH = (
    "If the file is only loaded by those who trust you, pass trusted={} to save and to "
    "load. Or use pickle."
)
UNTRUSTED = {
    "sklearn.tree._tree.Tree": VotingClassifier([("net", CLASSIFIER), ("tree", TREE)]),
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor": (
        tabular_pipeline(HistGradientBoostingClassifier(max_iter=1))
    ),
    "sklearn.feature_selection._univariate_selection.f_classif": make_pipeline(
        SelectKBest(k=2), CLASSIFIER
    ),
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_save_refuses_what_load_does_not_trust(file, name):
    model = clone(UNTRUSTED[name]).fit(X, LABELS)
    with pytest.raises(ValueError, match="cannot be saved") as caught:
        save(model, file)
    assert str(caught.value) == (
        f"{type(model).__name__} cannot be saved: load does not trust {name}. "
        + TO_BOTH.format([name])
    )
    assert not file.exists()
    save(model, file, trusted=[name])
    again = load(file, trusted=[name])
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert f"not trusted: {name}." in refusal(file)


@pytest.mark.parametrize(
    ("distribution", "reason"),
    [
        (
            stats.loguniform(1e-3, 1e-2),
            "load does not trust scipy.stats._continuous_distns.reciprocal_gen, "
            "scipy.stats._distn_infrastructure.rv_continuous_frozen, because scipy "
            "runs text of the file to restore them",
        ),
        (
            stats.randint(1, 3),
            "a part contains itself, as scipy.stats.randint does",
        ),
    ],
    ids=["loguniform", "randint"],
)
def test_distributions_are_refused_and_the_best_estimator_is_saved(
    file, distribution, reason
):
    is_rate = "reciprocal" in reason
    space = {"lr" if is_rate else "max_epochs": distribution}
    search = BatchedRandomizedSearchCV(CLASSIFIER, space, n_iter=1, cv=2)
    search.fit(X, LABELS)
    with pytest.raises(ValueError, match="cannot be saved") as caught:
        save(search, file)
    assert str(caught.value) == (
        f"BatchedRandomizedSearchCV cannot be saved: {reason}. Save best_estimator_ of "
        "the search, search lists of values, or use pickle."
    )
    save(search.best_estimator_, file)
    np.testing.assert_array_equal(load(file).predict(X), search.predict(X))


def test_classes_of_a_script_are_refused(file, monkeypatch):
    class Local(nn.Linear):
        def __init__(self, n_features_in, n_outputs):
            super().__init__(n_features_in, n_outputs)

    Local.__module__, Local.__qualname__ = "__main__", "Local"
    monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    net = StableNetRegressor(Local, max_epochs=1, random_state=0).fit(X, NUMBERS)
    with pytest.raises(ValueError, match="cannot be saved") as caught:
        save(make_pipeline(net), file)
    assert str(caught.value) == (
        "Pipeline cannot be saved: __main__.Local is defined in a notebook or script, "
        "and does not exist where the file is loaded. Put it into a module file, "
        "import it from there, and fit again."
    )
    assert not file.exists()


def test_sparse_and_quantized_attributes_are_refused(file):
    net = clone(CLASSIFIER).fit(X, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        packed = quantized.dynamic.Linear(3, 1)._packed_params._packed_params
    reasons = {
        "a sparse matrix, which load does not read. Fit it on a dense array, or use "
        "pickle.": sparse.csr_array(X),
        "an object of torch without attributes in Python, as quantized layers do. Use "
        "pickle, or the layer before it is quantized.": packed,
    }
    for reason, net.extra_ in reasons.items():
        with pytest.raises(ValueError, match="cannot be saved") as caught:
            save(net, file)
        message = f"StableNetClassifier cannot be saved: it contains {reason}"
        assert str(caught.value) == message
        assert not file.exists()


def test_models_that_are_not_fitted_are_refused(file):
    with pytest.raises(NotFittedError, match="not fitted") as caught:
        save(make_pipeline(SafeScaler(), clone(CLASSIFIER)), file)
    assert str(caught.value) == (
        "This Pipeline instance is not fitted yet. Call 'fit' with appropriate "
        "arguments before using this estimator."
    )
    assert not file.exists()


@pytest.mark.parametrize("trusted", [None, True, [3]])
def test_trusted_is_a_list_of_names(file, pipeline, trusted):
    save(pipeline, file)
    for call in (
        lambda: save(pipeline, file, trusted=trusted),
        lambda: load(file, trusted=trusted),
    ):
        with pytest.raises(ValueError, match="trusted") as caught:
            call()
        assert str(caught.value) == (
            "trusted must be a list of names of classes and functions, such as "
            f"['my_package.MyModule'], got {trusted!r}."
        )


# -- what is read --------------------------------------------------------------------


def test_the_class_of_a_user_is_trusted_by_name(file):
    model = StableNetRegressor(LogNetwork, max_epochs=1, random_state=0)
    save(model.fit(X, NUMBERS), file)
    name = "persistence_helpers.LogNetwork"
    assert refusal(file) == (
        "The file FILE contains classes or functions that are not trusted: "
        f"{name}. If you trust their code and the author of the file, pass "
        f"trusted=[{name!r}]."
    )
    for trusted in ([name], name):
        again = load(file, trusted=trusted)
        np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_classes_of_torch_and_sknan_need_no_trust(file):
    module = nn.Sequential(nn.Linear(4, 3), activations.SafeSqrt(), nn.GELU())
    model = StableNetRegressor(
        nn.Sequential(module, nn.Linear(3, 1)),
        criterion=nn.HuberLoss,
        optimizer="sgd",
        max_epochs=1,
        random_state=0,
        warm_start=True,
    )
    save(model.fit(X, NUMBERS), file)
    again = load(file)
    for _ in range(2):
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
        again.fit(X, NUMBERS)
        model.fit(X, NUMBERS)


RATES = {"lr": [1e-3]}
OF_SCIKIT_LEARN = {
    "scorer": BatchedGridSearchCV(CLASSIFIER, RATES, scoring="roc_auc", cv=2),
    "loss": GridSearchCV(CLASSIFIER, RATES, scoring="neg_log_loss", cv=2),
    "own scorer": GridSearchCV(
        CLASSIFIER,
        RATES,
        scoring=make_scorer(fbeta_score, beta=2, pos_label="yes"),
        cv=RepeatedStratifiedKFold(n_splits=2, n_repeats=1),
    ),
    "pairs": BatchedGridSearchCV(CLASSIFIER, RATES, cv=list(KFold(2).split(X))),
    "optimizers": BatchedGridSearchCV(
        CLASSIFIER, {"optimizer": [optim.SGD, optim.Adam]}, cv=2
    ),
    "calibrated": CalibratedClassifierCV(CLASSIFIER, cv=2),
    "kernels": GaussianProcessClassifier(),
}


@pytest.mark.parametrize("kind", OF_SCIKIT_LEARN)
def test_public_parts_of_scikit_learn_need_no_trust(file, kind):
    model = clone(OF_SCIKIT_LEARN[kind]).fit(X, LABELS)
    save(model, file)
    np.testing.assert_array_equal(load(file).predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize(
    "transformer",
    [NaNImputer(), NaNImputer(strategy="mean"), SafeScaler()],
    ids=["auto", "mean", "scaler"],
)
def test_what_partial_fit_has_learned_is_saved(file, transformer):
    table = np.random.default_rng(0).normal(size=(3000, 2))
    model = clone(transformer).partial_fit(table[:2000])
    save(model, file)
    again = load(file).partial_fit(table[2000:])
    model.partial_fit(table[2000:])
    np.testing.assert_array_equal(again.transform(table), model.transform(table))


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "+02:00"])
@pytest.mark.parametrize(
    "params",
    [
        {"strategy": "median"},
        {"strategy": "constant", "fill_value": datetime.datetime(2020, 2, 1, 5)},
        {"strategy": "constant", "fill_value": np.datetime64("2020-02-01")},
    ],
)
def test_dates_that_are_filled_are_saved(file, params, zone):
    dates = pd.to_datetime(["2020-01-01", None, "2020-03-05", "2021-02-03"])
    table = pd.DataFrame({"day": dates.tz_localize(zone), "wait": dates - dates[0]})
    table = table if params["strategy"] == "median" and zone is None else table[["day"]]
    if zone is not None and "fill_value" in params:
        fill_value = pd.Timestamp(params["fill_value"]).tz_localize(zone)
        params = params | {"fill_value": fill_value}
    imputer = NaNImputer(**params).fit(table)
    save(imputer, file)
    loaded = load(file)
    assert [*map(repr, loaded.statistics_)] == [*map(repr, imputer.statistics_)]
    np.testing.assert_array_equal(loaded.transform(table), imputer.transform(table))


@pytest.mark.parametrize("params", RAW_UNITS)
def test_scaled_columns_and_splitters_are_saved(file, params):
    model = clone(NET).set_params(early_stopping=True, **params)
    save(model.fit(1e4 + 100 * X, NUMBERS), file)
    again = load(file)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert repr(again) == repr(model)


def test_another_version_warns_once_as_scikit_learn_does(file):
    ensemble = StableNetEnsembleRegressor(clone(NET), n_estimators=3).fit(X, NUMBERS)
    save(ensemble, file)
    parts = parts_of(file)
    schema, version = parts["schema.json"].decode(), sknan.__version__
    assert schema.count(version) > 3
    parts["schema.json"] = schema.replace(version, "9.9.9").encode()
    write_parts(file, parts)
    with pytest.warns(InconsistentVersionWarning) as caught:
        load(file)
    assert len(caught) == 1
    assert caught[0].message.original_sklearn_version == "sknan 9.9.9"


# -- damaged files -------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory, pipeline):
    file = tmp_path_factory.mktemp("files") / "model.skops"
    save(pipeline, file)
    other = file.with_name("other.skops")
    save(StableNetClassifier(**SETTINGS).fit(X, LABELS), other)
    return file.read_bytes(), other.read_bytes()


def damaged(intact, seed):
    data, other = map(bytearray, intact)
    rng = random.Random(seed)
    at = rng.randrange(len(data))
    if seed % 4 == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif seed % 4 == 1:
        del data[at:]
    elif seed % 4 == 2:
        data[at:] = other[rng.randrange(len(other)) :]
    else:
        data[at:at] = rng.randbytes(9)
    return bytes(data)


@pytest.mark.parametrize("seed", range(32))
def test_a_damaged_file_is_refused(file, intact, seed):
    file.write_bytes(damaged(intact, seed))
    assert refusal(file) == (
        "The file FILE is damaged, or was not written by sknan.persistence.save. Put "
        "an intact copy in its place."
    )


@pytest.mark.parametrize("seed", range(32))
def test_damaged_contents_with_a_valid_checksum_give_one_error(file, intact, seed):
    archives = [bytes(verified(data)) for data in intact]
    file.write_bytes(sealed(damaged(archives, seed)))
    # A date or another field that nobody reads may have changed.
    with contextlib.suppress(ValueError):
        load(file)


# -- hostile files -------------------------------------------------------------------


def with_schema(change):
    """Return a function that changes the schema of skops in the parts of a file."""

    def apply(parts):
        schema = json.loads(parts["schema.json"])
        parts["schema.json"] = json.dumps(change(schema) or schema).encode()

    return apply


def with_text(change):
    """Return a function that changes the encoded text of the scaler."""

    def replace(schema):
        steps = schema["content"]["content"]["steps"]["content"]
        scaler = steps[1]["content"][1]["content"]["content"]["_encoded"]
        text = scaler["content"]["content"]["text"]
        text["content"] = json.dumps(json.dumps(change))

    return with_schema(replace)


def node(loader, module, name, **rest):
    return {"__loader__": loader, "__module__": module, "__class__": name, **rest}


def call_of_code(schema):
    text = node("JsonNode", "builtins", "str", content='"echo"', is_json=True)
    call = node("TupleNode", "builtins", "tuple", content=[text])
    loader = "ConstructorFromReduceNode"
    schema["content"] = node(loader, "os", "system", content=call)


def call_of(module, name):
    """Return a change of the schema that makes skops call a function."""

    def change(schema):
        arguments = node("TupleNode", "builtins", "tuple", content=[])
        loader = "ConstructorFromReduceNode"
        schema["content"] = node(loader, module, name, content=arguments)

    return with_schema(change)


def value_of(module, name):
    """Return a change of the schema that makes skops import a function."""

    def change(schema):
        schema["content"] = node("FunctionNode", module, name)

    return with_schema(change)


def huge_array(parts):
    name = next(name for name in parts if name.endswith(".npy"))
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(header, shape)
    parts[name] = header.getvalue()


ATTACKS = {
    "function": (with_schema(call_of_code), "not trusted: os.system"),
    "metric": (
        call_of("sklearn.metrics._ranking", "roc_auc_score"),
        "not trusted: sklearn.metrics._ranking.roc_auc_score.",
    ),
    "optimizer": (
        call_of("torch.optim.sgd", "SGD"),
        "not trusted: torch.optim.sgd.SGD",
    ),
    "loader": (
        value_of("sklearn.datasets._base", "load_files"),
        "not trusted: sklearn.datasets._base.load_files",
    ),
    "utility": (
        value_of("sklearn.utils._testing", "assert_run_python_script_without_output"),
        "not trusted: sklearn.utils._testing.",
    ),
    "import of a metric": (
        value_of("sklearn.metrics._ranking", "np"),
        "not trusted: sklearn.metrics._ranking.np",
    ),
    "distribution": (
        call_of("scipy.stats._distn_infrastructure", "rv_continuous_frozen"),
        "not trusted: scipy.stats._distn",
    ),
    "name": (with_text([["name", "os.system"], []]), "no known class or function"),
    "sibling": (
        with_text([["name", "skrub._data_ops._evaluation.evaluate"], []]),
        "no known class or function",
    ),
    "import": (
        with_text([["name", "sknan.nets._backup.os"], []]),
        "no known class or function",
    ),
    "class": (
        with_text([["object", 0], [[["name", "sknan.BackupAndRestore"], ["dict"]]]]),
        "is not restored from attributes",
    ),
    "method": (with_text([["_bytes", 0, 10**9], []]), "AttributeError"),
    "copies": (
        with_text([["list", *[["array", "|u1", [1, 16], i, "C"] for i in range(99)]]]),
        "cannot be restored",
    ),
    "shape": (
        with_text([["array", "<f8", [10**13], 0, "C"], []]),
        "The arrays are larger than the data.",
    ),
    "deep": (with_schema(lambda s: json.loads("[" * 900 + "]" * 900)), "not a model"),
    "path": (lambda parts: parts.update({"../x.json": b"1"}), "other names"),
    "absolute": (lambda parts: parts.update({"/tmp/x.npy": b"1"}), "other names"),
    "pickle": (lambda parts: parts.update({"x.pkl": b"1"}), "other names"),
    "bomb": (
        lambda parts: parts.update({"x.bin": bytes(30_000_000)}),
        "far larger than the file",
    ),
    "huge": (huge_array, "another size than its part"),
    "format": (lambda p: p.update({"about.json": b'{"format": 2}'}), "the format 2"),
    "empty": (lambda parts: parts.clear(), "not a model"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_is_refused_and_runs_nothing(file, intact, attack):
    change, message = ATTACKS[attack]
    file.write_bytes(intact[0])
    parts = parts_of(file)
    change(parts)
    write_parts(file, parts)
    events = set()
    _listeners.append(lambda event: events.add(event))
    tracemalloc.start()
    try:
        assert message in refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
        _listeners.clear()
    assert not events & {"os.system", "subprocess.Popen", "os.exec", "os.remove"}


_listeners: list = []
sys.addaudithook(lambda event, _: [listen(event) for listen in _listeners])


def test_trusted_types_are_of_sknan_skrub_and_scikit_learn():
    assert {name.partition(".")[0] for name in TRUSTED_TYPES} == {
        "sknan",
        "skrub",
        "sklearn",
    }
    assert sorted(TRUSTED_TYPES) == TRUSTED_TYPES


@pytest.mark.parametrize("path", [1, b"model", None])
def test_objects_that_are_no_paths_are_refused(path):
    for call, arguments in ((save, (None, path)), (load, (path,))):
        with pytest.raises(ValueError, match="path") as refused:
            call(*arguments)
        assert str(refused.value) == (
            f"The 'path' parameter of {call.__name__} must be a path, got {path!r}."
        )
