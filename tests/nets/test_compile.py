import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sknan import DivergenceWarning, GuardedNetClassifier, StableNetClassifier
from sknan.diagnosis import diagnose

# torch's compiler suppresses its own warnings in a way that has no effect if warnings
# are errors, as they are in these tests.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(np.int64)


class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, X):
        return self.inner(X) + torch.log(X[:, :1] + 100)


@pytest.fixture(scope="module")
def fitted(table):
    model = StableNetClassifier(
        Fragile,
        compile=True,
        compile__dynamic=True,
        max_epochs=3,
        batch_size=50,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
        return model.fit(*table)


def test_a_compiled_network_learns_what_a_plain_one_does(fitted, table):
    plain = clone(fitted).set_params(compile=False).fit(*table)
    assert type(fitted.net_.module_) is not Fragile
    np.testing.assert_allclose(
        fitted.net_.history[:, "train_loss"],
        plain.net_.history[:, "train_loss"],
        rtol=1e-5,  # compiled code fuses and reorders operations
    )
    np.testing.assert_allclose(
        fitted.predict_proba(table[0]), plain.predict_proba(table[0]), rtol=1e-5
    )


def test_a_compiled_network_can_be_pickled(fitted, table):
    twin = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(twin.predict(table[0]), fitted.predict(table[0]))


@pytest.mark.parametrize("is_pickled", [False, True])
def test_a_compiled_network_continues_as_a_plain_one_does(table, is_pickled):
    options = {"max_epochs": 2, "batch_size": 50, "warm_start": True, "random_state": 0}
    compiled = {"compile": True, "compile__backend": "aot_eager"}
    proba = []
    for more in ({}, compiled):
        model = StableNetClassifier(Fragile, **options, **more).fit(*table)
        model = pickle.loads(pickle.dumps(model)) if is_pickled else model
        model.fit(*table).partial_fit(*table)
        assert len(model.net_.history) == 5
        proba.append(model.predict_proba(table[0]))
    np.testing.assert_allclose(*proba, rtol=1e-5)  # reordered operations


def test_a_failed_step_of_a_compiled_network_is_explained(table):
    X, y = table[0].copy(), table[1]
    X[7, 0] = -200
    model = StableNetClassifier(
        Fragile,
        compile=True,
        compile__backend="aot_eager",
        max_epochs=1,
        batch_size=200,
        random_state=0,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
        model.fit(X, y)
    assert [w.category for w in caught] == [DivergenceWarning] * 2
    assert "The module alone is not finite for 1 of" in str(caught[1].message)
    (report,) = model.nonfinite_reports_
    assert (report.operation, report.module, report.rows) == ("aten.log", "", (7,))
    assert report.source.startswith(__file__)
    assert diagnose(model, X, y).rows == (7,)


def test_guarded_nets_accept_compile_as_skorch_does(table):
    net = GuardedNetClassifier(
        Fragile,
        compile=True,
        compile__backend="aot_eager",
        criterion=nn.CrossEntropyLoss,
        max_epochs=2,
        train_split=None,
        verbose=0,
    ).fit(*table)
    assert np.isfinite(net.history[:, "train_loss"]).all()
