"""Recorded operations compute the same results again from new inputs."""

import pytest
import torch

from sknan._engine.recording import Recording


def cases():
    scale = torch.tensor(3.0)

    def product_and_views(x, y):
        return (x @ y.transpose(1, 2)).relu().flatten(1).sum(1), x[:, :2] - 1.0

    def in_place(x, y):
        total = torch.zeros(3, 5)
        total.index_add_(0, torch.arange(3), x[:, 0])
        return total.mul_(2.0), torch.ones(3) * scale + y.sum((1, 2))

    def several_results(x, y):
        deviation, mean = torch.std_mean(x, 1)
        return deviation + mean, y.sort(2).values

    def result_without_variant(x, y):
        first, second = torch.split(x * 2.0, [1, 3], 1)
        return first + second.sum(1, keepdim=True), torch.linalg.norm(y)

    def statistics(x, y):
        mean, variance = torch.zeros(5), torch.ones(5)
        normalized = torch.batch_norm(
            x[0], None, None, mean, variance, True, 0.1, 1e-5, False
        )
        return normalized * 2.0, mean + variance + y.sum()

    def shape_changed_in_place(x, y):
        product = x.transpose(1, 2) @ x
        total = product.sum(0)
        product.unsqueeze_(1)
        return product * y[:, :1, None], total

    functions = [
        product_and_views,
        in_place,
        several_results,
        result_without_variant,
        statistics,
        shape_changed_in_place,
    ]
    return {function.__name__: function for function in functions}


@pytest.mark.parametrize("function", cases().values(), ids=cases())
def test_recorded_operations_run_again_on_new_inputs(function):
    x, y = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    with torch.no_grad(), Recording() as recording:
        outputs = function(x, y)
    expected = [output.clone() for output in outputs]
    with torch.no_grad():
        calls = recording.calls([x, y], outputs)
        assert all(map(torch.equal, outputs, expected))  # the first run remains valid
        for _ in range(2):
            x.normal_()
            y.normal_()
            for call in calls:
                call()
            for output, again in zip(outputs, function(x, y), strict=True):
                torch.testing.assert_close(output, again)
            assert not torch.equal(outputs[0], expected[0])


def test_unused_results_and_views_are_not_computed_again():
    x = torch.randn(2, 3)
    with torch.no_grad(), Recording() as recording:
        _ = x.exp()
        output = x.t().unsqueeze(0) * torch.ones(3, 2)
    assert len(recording.calls([x], [output])) == 1


def test_intermediate_results_share_memory():
    x = torch.randn(1000)
    with torch.no_grad(), Recording() as recording:
        output = x
        for _ in range(10):
            output = output + 1.0
    recording.calls([x], [output])
    results = [operation.result for operation in recording.operations]
    assert len({result.data_ptr() for result in results}) == 3


def test_a_function_that_reads_values_is_noticed():
    x = torch.randn(3)
    with Recording() as recording:
        x.sum()
    assert not recording.reads_values
    with Recording() as recording:
        x.sum().item()
    assert recording.reads_values
