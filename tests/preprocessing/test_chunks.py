"""Tables in chunks, which give the results of the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknan import (
    BatchedGridSearchCV,
    BatchedHalvingSearchCV,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    audit,
    find_learning_rate,
    tabular_pipeline,
)
from sknan.estimators._input import as_network_input, shared_tensor
from sknan.preprocessing import TableCleaner, iter_chunks


@pytest.fixture(scope="module")
def trips():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "km": rng.lognormal(size=600),
            "kind": rng.choice(["day", "night", None], 600),
            "stops": rng.integers(0, 9, 600),
        }
    )
    X["fare"] = 3 * X["km"] + X["stops"]
    X.loc[::7, "km"] = np.nan
    return X


@pytest.fixture(scope="module")
def folder(trips, tmp_path_factory):
    path = tmp_path_factory.mktemp("trips")
    for number, part in enumerate((trips[:350], trips[350:])):
        table = pa.Table.from_pandas(part, preserve_index=False)
        parquet.write_table(table, path / f"{number}.parquet", row_group_size=130)
    return path


def refusal(error, act):
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


SOURCES = {
    "folder": lambda trips, folder: folder,
    "text": lambda trips, folder: str(folder),
    "dataset": lambda trips, folder: dataset.dataset(folder),
    "arrow": lambda trips, folder: pa.Table.from_pandas(trips),
    "pandas": lambda trips, folder: trips,
    "polars": lambda trips, folder: pl.from_pandas(trips),
    "callable": lambda trips, folder: lambda: (trips[i : i + 90] for i in (0, 90)),
    "callable of arrow": lambda trips, folder: (
        lambda: (
            cls.from_pandas(trips[90 * i : 90 * i + 90])
            for i, cls in enumerate((pa.Table, pa.RecordBatch))
        )
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_table_is_read_in_chunks_repeatedly(source, trips, folder):
    chunks = iter_chunks(SOURCES[source](trips, folder), "fare", chunk_size=100)
    for _ in range(2):
        read = list(chunks)
        assert len(read) > 1
        assert all(0 < len(X) == len(y) <= 100 for X, y in read)
        X, sampled_fares = chunks.sample()
        assert list(X.columns) == ["km", "kind", "stops"]
        n_rows = len(X)
        assert n_rows == (180 if "callable" in source else 600)
        np.testing.assert_array_equal(X["stops"], trips["stops"][:n_rows])
        fares = np.concatenate([y for _, y in read])
        np.testing.assert_array_equal(fares, trips["fare"][:n_rows])
        np.testing.assert_array_equal(sampled_fares, fares)


@pytest.mark.parametrize("source", ["folder", "polars"])
def test_a_pipeline_learns_from_chunks_as_from_the_whole_table(source, trips, folder):
    X, y = trips.drop(columns="fare"), trips["fare"]
    net = StableNetRegressor(max_epochs=2, random_state=0)
    whole = tabular_pipeline(net).fit(X, y).predict(X)
    table = SOURCES[source](trips, folder)
    for chunks, target in (
        (iter_chunks(table, "fare", chunk_size=100), None),
        (iter_chunks(table, chunk_size=100), "fare"),
        (iter_chunks(X, chunk_size=100), y),
        (dataset.dataset(folder), "fare"),
    ):
        pipeline = tabular_pipeline(net).fit(chunks, target)
        np.testing.assert_array_equal(pipeline.predict(X), whole)
        assert pipeline[-1].feature_names_in_[0] == "km"
    in_chunks = pipeline.predict(iter_chunks(table, "fare", chunk_size=100))
    np.testing.assert_array_equal(in_chunks, whole)
    assert pipeline[-2]._sketch is None


def test_an_ensemble_of_classifiers_learns_labels_from_chunks(trips, folder):
    known = trips.assign(kind=trips["kind"].fillna("?"))
    X, y = known.drop(columns="kind"), known["kind"]
    settings = {"net__estimator__max_epochs": 2, "net__n_estimators": 2}
    whole, part = (
        tabular_pipeline("classifier", random_state=0).set_params(**settings)
        for _ in range(2)
    )
    expected = whole.fit(X, y).predict_proba(X)
    part.fit(iter_chunks(known, "kind", chunk_size=100))
    assert part[-1].classes_.tolist() == ["?", "day", "night"]
    np.testing.assert_array_equal(part.predict_proba(X), expected)
    np.testing.assert_array_equal(part.predict_proba(iter_chunks(X)), expected)


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent"])
def test_transformers_learn_from_chunks_and_convert_them_when_read(strategy, trips):
    X = trips[["km", "stops"]].astype("float32")
    steps = make_pipeline(
        NaNImputer(strategy=strategy, add_indicator=True), SafeScaler()
    )
    whole = steps.fit_transform(X)
    chunks = steps.fit_transform(iter_chunks(X, chunk_size=250))
    assert [len(chunk) for chunk in chunks] == [250, 250, 100]
    np.testing.assert_allclose(np.concatenate(list(chunks)), whole, atol=1e-6)


def test_validation_data_and_continued_training_may_be_in_chunks(trips):
    X = np.array(trips[["stops", "fare"]].fillna(0), dtype="float32")
    y = X[:, 0] > 4
    fits = []
    for wrap in (np.asarray, iter_chunks):
        net = StableNetClassifier(max_epochs=2, random_state=0)
        net.fit(wrap(X), y, X_val=wrap(X[:50]), y_val=y[:50])
        fits.append(net.partial_fit(wrap(X), y).predict_proba(X))
    net.fit(iter_chunks(X, y), X_val=iter_chunks(X[:50], y[:50]))
    fits.append(net.partial_fit(X, y).predict_proba(X))
    np.testing.assert_array_equal(fits[0], fits[1])
    np.testing.assert_array_equal(fits[0], fits[2])


@pytest.mark.parametrize(
    "estimator",
    [
        StableNetClassifier(),
        StableNetRegressor(),
        StableNetEnsembleClassifier(n_estimators=2),
        StableNetEnsembleRegressor(n_estimators=2),
    ],
)
def test_whole_chunks_are_held_out(estimator):
    held_out = []

    def scorer(estimator, X, y):
        held_out.append(np.rint(X[:, 0]))
        return 0.0

    # The first column is the number of the chunk.
    X = np.repeat(np.arange(30.0, dtype="float32"), 10)[:, None]
    network = getattr(estimator, "estimator", estimator)
    if network is None:
        network = estimator._network()
        estimator.set_params(estimator=network)
    network.set_params(max_epochs=1, random_state=0)
    estimator.set_params(validation_split="chunks", scoring=scorer)
    estimator.fit(iter_chunks(X, X[:, 0] > 14, chunk_size=10))
    # A tenth of the chunks for one network, a fifth for each of an ensemble.
    n_networks = getattr(estimator, "n_estimators", 1)
    by_network = [np.unique(rows, return_counts=True) for rows in held_out]
    assert [len(chunks) for chunks, _ in by_network] == [3 * n_networks] * n_networks
    assert all((counts == 10).all() for _, counts in by_network)
    assert len({tuple(chunks) for chunks, _ in by_network}) == n_networks
    if n_networks == 1:  # one epoch on the rows, which holds out nothing
        estimator.partial_fit(X, X[:, 0] > 14)


def test_the_range_test_reads_chunks_and_holds_out_whole_ones():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)).astype("float32")
    net = StableNetRegressor(max_epochs=1, random_state=0)
    settings = {"rates": [1e-4, 1e-3, 1e-2], "n_steps": 20, "n_seeds": 2}
    whole, in_chunks = (
        find_learning_rate(net, table, X[:, 0], **settings)
        for table in (X, iter_chunks(X, chunk_size=20))
    )
    np.testing.assert_array_equal(whole.losses, in_chunks.losses)
    net.set_params(validation_split="chunks")
    chunks = iter_chunks(X, X[:, 0], chunk_size=20)
    assert find_learning_rate(net, chunks, None, **settings).suggestion > 0


def test_a_sample_serves_what_needs_a_table_in_memory(trips, folder):
    known = trips.dropna()
    chunks = iter_chunks(known, "fare", chunk_size=100)
    message = (
        "X is read in chunks, but a table in memory is needed here. Pass a sample of "
        "its rows, which X, y = iter_chunks(..., y).sample() gives."
    )
    pipe = tabular_pipeline(StableNetRegressor(max_epochs=1, random_state=0))
    grid = {"net__lr": [1e-3]}
    for search in (BatchedGridSearchCV(pipe, grid, cv=2), GridSearchCV(pipe, grid)):
        assert (
            refusal(TypeError, lambda s=search: s.fit(chunks, known["fare"])) == message
        )
    data = dataset.dataset(folder)
    refused = BatchedHalvingSearchCV(pipe, grid)
    assert refusal(TypeError, lambda: refused.fit(data, "fare")) == message
    assert refusal(TypeError, lambda: StandardScaler().fit(chunks)) == message
    X, fare = chunks.sample()
    np.testing.assert_array_equal(X, known.drop(columns="fare"))
    search = BatchedGridSearchCV(pipe, grid, cv=2).fit(X, fare)
    assert search.predict(X).shape == fare.shape


def test_an_audit_of_chunks_is_that_of_random_rows(trips, folder):
    whole = audit(trips, "fare")
    for X, y in (
        (iter_chunks(trips, "fare", chunk_size=100), None),
        (iter_chunks(folder), "fare"),
        (dataset.dataset(folder), "fare"),
    ):
        assert str(audit(X, y)) == str(whole)
    a = pd.DataFrame({"a": np.arange(300_000.0), "b": 1.0})
    # Arrow cannot filter views of text.
    views = pa.table({"a": a["a"], "b": pa.array(["b"] * len(a), pa.string_view())})
    for rows in (a, pa.Table.from_pandas(a), views):
        X = iter_chunks(rows).sample()
        assert 100_000 <= len(X) <= 200_000
        assert X["a"].is_monotonic_increasing
        assert X["a"].diff().max() < 50
    found = audit(iter_chunks(views))
    n = found.n_rows
    assert n == len(X)
    size = f"{n // 1000} {n % 1000:03d} rows, 2 columns"
    assert found.summary.startswith(f"A random sample of 300 000 rows. {size}")


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"x": [None, None]}, {"x": ["a", None]}),
        ({"x": [None, None]}, {"x": [1, 2]}),
        ({"x": [1, 2]}, {"x": [0.5, None]}),
        ({"other": ["a", "b"]}, {"x": [0.5, 1.5]}),
    ],
)
def test_a_column_has_one_type_in_all_files(first, later, tmp_path):
    parts = [pd.DataFrame(first), pd.DataFrame(later)]
    for number, part in enumerate(parts):
        part.to_parquet(tmp_path / f"{number}.parquet", index=False)
    read = pd.concat(list(iter_chunks(tmp_path)))
    assert set(read) == {*first, *later}
    for name in read:
        cells = read[name].astype(object).where(read[name].notna(), None)
        missing = [None, None]
        assert cells.tolist() == first.get(name, missing) + later.get(name, missing)


def test_a_column_of_text_and_of_numbers_is_named(tmp_path):
    for number, cells in enumerate(([1, 2], ["1", "x"])):
        part = pa.table({"n": [0.5, 1.5], "x": cells})
        parquet.write_table(part, tmp_path / f"{number}.parquet")
    with pytest.raises(ValueError, match="'x'") as caught:
        list(iter_chunks(tmp_path))
    assert str(caught.value) == (
        "Column 'x' is of type int64 in one file and of type string in another: Failed "
        "to parse string: 'x' as a scalar of type int64. Write it with one type to all "
        "files."
    )


@pytest.mark.parametrize("chunk_size", [2, 3, 9])
def test_large_integers_and_null_categories_are_read_as_in_a_table(chunk_size):
    large = 2**53 + 1
    kinds = pa.DictionaryArray.from_arrays([0, 1, 0] * 3, pa.array(["a", None]))
    numbers = pa.array([5, 6, 7, None, large, large, None, large, 8])
    table = pa.table({"n": numbers, "kind": kinds})
    imputer = NaNImputer(strategy="most_frequent")
    imputer.fit(iter_chunks(table, chunk_size=chunk_size))
    assert imputer.statistics_.tolist() == [large, "a"]


@pytest.mark.parametrize("source", ["file", "filter", "function"])
def test_chunks_without_rows_are_skipped(source, trips, tmp_path):
    parts = [trips[:0], trips[:90], trips[:0], trips[90:180]]
    for number, part in enumerate(parts):
        # The filter empties a part that is not empty in the file.
        if source == "filter" and not len(part):
            part = trips[:90].assign(fare=-1.0)
        part.to_parquet(tmp_path / f"{number}.parquet", index=False)
    chunks = {
        "file": iter_chunks(tmp_path, "fare"),
        "filter": dataset.dataset(tmp_path).filter(dataset.field("fare") > 0),
        "function": iter_chunks(lambda: iter(parts), "fare"),
    }[source]
    net = StableNetRegressor(max_epochs=2, random_state=0)
    X, y = trips[:180].drop(columns="fare"), trips["fare"][:180]
    pipeline = tabular_pipeline(net).fit(chunks, "fare")
    np.testing.assert_array_equal(
        pipeline.predict(X), tabular_pipeline(net).fit(X, y).predict(X)
    )


@pytest.mark.parametrize(
    "estimator",
    [
        StableNetClassifier(max_epochs=2, random_state=0),
        StableNetRegressor(max_epochs=2, random_state=0),
        StableNetEnsembleClassifier(n_estimators=2, random_state=0),
        StableNetEnsembleRegressor(n_estimators=2, random_state=0),
    ],
)
def test_estimators_learn_and_score_the_target_of_the_chunks(estimator, trips):
    table = trips[["stops", "fare"]].fillna(0).assign(y=trips["stops"] > 4)
    if "estimator" in estimator.get_params():
        estimator.set_params(estimator__max_epochs=2)
    if not hasattr(estimator, "predict_proba"):
        table["y"] = table["y"].astype(float)
    X, y = table.drop(columns="y"), table["y"]
    score = clone(estimator).fit(X, y).score(X, y)
    chunks = iter_chunks(table, "y", chunk_size=100)
    estimator.fit(chunks)
    assert estimator.score(chunks) == estimator.score(iter_chunks(X), y) == score
    if hasattr(estimator, "partial_fit"):
        estimator.partial_fit(chunks)
    assert refusal(ValueError, lambda: estimator.score(iter_chunks(X))) == (
        f"{type(estimator).__name__} requires y to be passed, but the target y is None."
    )


def test_a_pipeline_scores_chunks(trips, folder):
    X, y = trips.drop(columns="fare"), list(trips["fare"])
    net = StableNetRegressor(max_epochs=2, random_state=0)
    pipeline = tabular_pipeline(net).fit(iter_chunks(X, chunk_size=100), y)
    score = pipeline.score(X, y)
    assert pipeline.score(iter_chunks(folder, "fare")) == score
    assert pipeline.score(dataset.dataset(folder), "fare") == score


def test_advice_for_csv_and_sparse_tables_works(trips, tmp_path):
    path = str(tmp_path / "trips.csv")
    trips.to_csv(path, index=False)
    assert refusal(ValueError, lambda: iter_chunks(path, "fare")) == (
        f"iter_chunks cannot read {path!r} as Parquet. For CSV, pass "
        f"pyarrow.dataset.dataset({path!r}, format='csv')."
    )
    ((X, _),) = iter_chunks(dataset.dataset(path, format="csv"), "fare")
    assert X.shape == (600, 3)
    X = sparse.coo_array(np.eye(1500))
    assert refusal(TypeError, lambda: iter_chunks(X)) == (
        "iter_chunks cannot read a sparse table. Pass a function that gives dense "
        "chunks: X = X.tocsr(); iter_chunks(lambda: (X[i : i + 1000].toarray() for "
        "i in range(0, X.shape[0], 1000)), y)."
    )
    X = X.tocsr()
    chunks = iter_chunks(
        lambda: (X[i : i + 1000].toarray() for i in range(0, X.shape[0], 1000))
    )
    np.testing.assert_array_equal(np.concatenate(list(chunks)), np.eye(1500))


def test_a_read_only_memory_map_is_trained_on_without_a_copy(tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 3)).astype("float32")
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.may_share_memory(mapped, as_network_input(mapped, None))
    assert np.may_share_memory(mapped, shared_tensor(mapped).numpy())
    fits = []
    for table in (X, mapped, pd.DataFrame(mapped, copy=False).to_numpy()):
        net = StableNetRegressor(max_epochs=2, random_state=0).fit(table, X[:, 0])
        fits.append(net.predict(mapped))
    np.testing.assert_array_equal(fits[0], fits[1])
    np.testing.assert_array_equal(fits[0], fits[2])
    np.testing.assert_array_equal(np.load(tmp_path / "X.npy"), X)


@pytest.mark.parametrize(("impute", "n_passes"), [("median", 3), ("mean", 4)])
def test_the_table_is_read_few_times(impute, n_passes, trips):
    passes = []

    def read():
        passes.append(len(passes))
        return iter([trips])

    net = StableNetRegressor(max_epochs=1, random_state=0)
    tabular_pipeline(net, impute=impute).fit(iter_chunks(read, "fare"))
    assert len(passes) == n_passes


def test_what_has_no_partial_fit_learns_from_rows_of_all_chunks():
    def read():
        return (pd.DataFrame({"part": [str(i)] * 30_000}) for i in range(9))

    sample = iter_chunks(read).sample()
    assert 100_000 <= len(sample) <= 200_000
    assert sample["part"].unique().tolist() == [str(i) for i in range(9)]
    cleaner = TableCleaner().fit(iter_chunks(read))
    assert cleaner.kinds_ == {"part": "numbers"}


X_FIVE = np.arange(10.0).reshape(5, 2)
FIVE = pd.DataFrame(X_FIVE, columns=["a", "t"])


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (pd.DataFrame(X_FIVE), 1),
        (pd.DataFrame(X_FIVE), np.int64(1)),
        (pa.Table.from_pandas(pd.DataFrame(X_FIVE)), 1),
        (pd.DataFrame(X_FIVE, columns=[0.5, 1.5]), 1.5),
        (pd.DataFrame(X_FIVE, columns=pd.to_datetime(["2020", "2021"])), "day"),
        (X_FIVE, 1),
        (X_FIVE, -1),
    ],
)
def test_a_column_that_is_the_target_may_have_a_number(X, y):
    y = X.columns[1] if y == "day" else y
    whole = pipeline().fit(X_FIVE[:, :1], X_FIVE[:, 1])
    for chunks, target in ((iter_chunks(X, y), y), (iter_chunks(X), y)):
        model = pipeline().fit(chunks, target)
        (x, _), *_ = iter_chunks(X, y)
        np.testing.assert_array_equal(model.predict(x), whole.predict(X_FIVE[:, :1]))
        assert model.score(iter_chunks(X), y) == model.score(iter_chunks(X, y))


def same_iterator(chunks):
    return lambda: chunks


def fewer_rows_each_time():
    stops = iter((5, 4))
    return lambda: iter([FIVE[: next(stops)]])


def held_out_chunks():
    return StableNetRegressor(validation_split="chunks")


def pipeline():
    return tabular_pipeline(StableNetRegressor(max_epochs=1, random_state=0))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda: iter_chunks(iter([X_FIVE])),
            TypeError,
            "iter_chunks cannot read list_iterator in chunks repeatedly. Pass a path "
            "to Parquet files, an Arrow dataset, a DataFrame, an array, a memory map, "
            "or a function without arguments that returns an iterator.",
        ),
        (
            lambda: iter_chunks(X_FIVE, chunk_size=0),
            ValueError,
            "chunk_size must be an integer of at least 1, got 0.",
        ),
        (
            lambda: iter_chunks(X_FIVE, chunk_size=None),
            ValueError,
            "chunk_size must be an integer of at least 1, got None.",
        ),
        (
            lambda: iter_chunks(X_FIVE, chunk_size=2.5),
            ValueError,
            "chunk_size must be an integer of at least 1, got 2.5.",
        ),
        (
            lambda: pipeline().fit(iter_chunks(same_iterator(iter([FIVE])), "t")),
            ValueError,
            "The function of iter_chunks returned the same list_iterator again, which "
            "can be read only once. Create the iterator in the function, because each "
            "pass over the table calls it.",
        ),
        (
            lambda: pipeline().fit(iter_chunks(fewer_rows_each_time(), "t")),
            ValueError,
            "The table in chunks had 5 rows in the first pass and 4 in a later one. "
            "Each pass must give the same rows.",
        ),
        (
            lambda: list(iter_chunks(lambda: [sparse.eye_array(3)])),
            TypeError,
            "The function of iter_chunks gave a dia_array as a chunk. Let it give "
            "DataFrames or dense arrays.",
        ),
        (
            lambda: list(iter_chunks(lambda: FIVE)),
            TypeError,
            "The function of iter_chunks gave a str as a chunk. Let it give DataFrames "
            "or dense arrays.",
        ),
        *(
            (
                lambda make=make: make().fit(iter_chunks(FIVE, "t"), FIVE["a"]),
                ValueError,
                "The target is passed twice: as y of iter_chunks, and as another y. "
                "Pass one of the two.",
            )
            for make in (pipeline, StableNetRegressor, SafeScaler)
        ),
        *(
            (
                lambda make=make: make().fit(FIVE, "t"),
                TypeError,
                "y is the text 't', not a target for each row. If it names a column, "
                "pass iter_chunks(X, y='t') of sknan.preprocessing.",
            )
            for make in (pipeline, StableNetRegressor)
        ),
        (
            lambda: pipeline().fit(X_FIVE, 1),
            TypeError,
            "y is the int 1, not a target for each row. If it names a column, pass "
            "iter_chunks(X, y=1) of sknan.preprocessing.",
        ),
        *(
            (
                lambda y=y: iter_chunks(FIVE, y),
                TypeError,
                f"y of iter_chunks is of type {kind}. Pass the name of a column, its "
                "position if X is an array, or a list or array of one target for each "
                "row.",
            )
            for y, kind in ((map(str, "ab"), "map"), ({1.0}, "set"))
        ),
        *(
            (
                lambda y=y: list(iter_chunks(X_FIVE, y)),
                ValueError,
                f"The table has no column {y!r} for the target. It has: 0, 1.",
            )
            for y in ("t", 2, -3)
        ),
        *(
            (
                lambda make=make: make().fit("a.parquet", "t"),
                TypeError,
                "X is the text or path 'a.parquet', not a table. To read Parquet "
                "files, pass iter_chunks('a.parquet', y='t') of sknan.preprocessing.",
            )
            for make in (pipeline, StableNetRegressor)
        ),
        (
            lambda: StableNetRegressor().fit(Path("a.parquet")),
            TypeError,
            "X is the text or path 'a.parquet', not a table. To read Parquet files, "
            "pass iter_chunks('a.parquet') of sknan.preprocessing.",
        ),
        (
            lambda: NaNImputer().fit(iter_chunks(X_FIVE[:0])),
            ValueError,
            "The table has no rows. Pass a table with at least one row.",
        ),
        (
            lambda: list(iter_chunks(pd.DataFrame({"a": [1]}), "b")),
            ValueError,
            "The table has no column 'b' for the target. It has: 'a'.",
        ),
        (
            lambda: StableNetRegressor().fit(iter_chunks(X_FIVE), [1.0]),
            ValueError,
            "y has 1 rows, but X has at least 5. Pass one target for each row.",
        ),
        (
            lambda: list(iter_chunks(pd.DataFrame(X_FIVE).add_prefix("x"), ["x0"])),
            ValueError,
            "y has 1 rows, but X has at least 5. Pass one target for each row or the "
            "name of one column.",
        ),
        (
            lambda: StableNetRegressor().fit(iter_chunks(X_FIVE), np.arange(9.0)),
            ValueError,
            "y has 9 rows, but X has 5. Pass one target for each row.",
        ),
        (
            lambda: held_out_chunks().fit(X_FIVE, X_FIVE[:, 0]),
            ValueError,
            "validation_split='chunks' holds out whole chunks, but X is a table in "
            "memory. Pass iter_chunks(X, y) of sknan.preprocessing.",
        ),
        (
            lambda: held_out_chunks().fit(iter_chunks(X_FIVE), X_FIVE[:, 0]),
            ValueError,
            "validation_split='chunks' holds out whole chunks, but X has one chunk of "
            "5 rows. Pass a smaller chunk_size to iter_chunks: about a tenth of the "
            "rows.",
        ),
        (
            lambda: held_out_chunks().fit(
                iter_chunks(X_FIVE, X_FIVE[:, 0], chunk_size=2), groups=[0] * 5
            ),
            ValueError,
            "validation_split='chunks' holds out whole chunks, but groups were passed, "
            "too. Pass one of the two.",
        ),
        (
            lambda: TableCleaner().fit(iter_chunks(X_FIVE[:0])),
            ValueError,
            "The table has no rows. Pass a table with at least one row.",
        ),
    ],
)
def test_what_cannot_be_read_in_chunks_is_refused(act, error, message):
    assert refusal(error, act) == message
