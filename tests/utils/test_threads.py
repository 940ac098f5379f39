"""Number of threads of torch during training and prediction."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sknan import StableNetClassifier
from sknan._utils.threads import FlopCount, threads_for


@pytest.fixture(params=[1, 4])
def n_threads_before(request):
    original = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(original)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 4)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(int)


class ThreadRecorder(Callback):
    def on_epoch_begin(self, net, **kwargs):
        self.n_threads = torch.get_num_threads()


def test_a_small_task_uses_one_thread(n_threads_before):
    with threads_for(1e6):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == n_threads_before


def test_a_large_task_uses_all_threads_that_torch_may_use(n_threads_before):
    with threads_for(1e12):
        assert torch.get_num_threads() == n_threads_before


def test_an_explicit_number_of_threads_is_used(n_threads_before):
    with threads_for(1.0, 3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == n_threads_before


def test_the_number_of_threads_is_restored_after_an_error(n_threads_before):
    with pytest.raises(KeyError), threads_for(1.0, 2):
        raise KeyError
    assert torch.get_num_threads() == n_threads_before


def test_a_small_network_trains_on_one_thread_or_the_given_number(
    n_threads_before, table
):
    recorder = ThreadRecorder()
    for num_threads, n_threads in [("auto", 1), (2, 2)]:
        model = StableNetClassifier(
            callbacks=[("recorder", recorder)], num_threads=num_threads, max_epochs=1
        )
        model.fit(*table).predict(table[0])
        assert recorder.n_threads == n_threads
        assert torch.get_num_threads() == n_threads_before


def test_zero_threads_are_refused(table):
    with pytest.raises(ValueError, match="num_threads") as caught:
        StableNetClassifier(num_threads=0).fit(*table)
    assert str(caught.value) == (
        "The 'num_threads' parameter of StableNetClassifier must be an integer of at "
        "least 1 or 'auto', got 0."
    )


@pytest.mark.parametrize(
    ("module", "shape", "n_flops"),
    [
        (nn.Linear(3, 5), (7, 3), 2 * 7 * 3 * 5),
        (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (7, 3), 350),
        (nn.Conv1d(2, 4, 3), (7, 2, 10), 2 * 7 * 8 * 4 * 2 * 3),
    ],
    ids=["linear", "perceptron", "convolution"],
)
def test_operations_of_matrix_products_and_convolutions_are_counted(
    module, shape, n_flops
):
    with FlopCount() as count:
        module(torch.zeros(shape))
    assert count.n_flops == n_flops
