"""Detection of the operation that fails in a forward pass or a loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diagnosis_helpers import (
    Attention,
    Net,
    Operation,
    Recurrent,
    found,
    line_of,
    table,
)
from torch import nn

from sknan.diagnosis import diagnose

# -- operations ----------------------------------------------------------------------


FORWARD = {
    "log": (lambda x: torch.log(x), -1.0, "aten.log"),
    "log of zero": (lambda x: x.log(), 0.0, "aten.log"),
    "log1p": (lambda x: torch.log1p(x), -2.0, "aten.log1p"),
    "sqrt": (lambda x: torch.sqrt(x), -1.0, "aten.sqrt"),
    "rsqrt": (lambda x: torch.rsqrt(x), 0.0, "aten.rsqrt"),
    "exp": (lambda x: torch.exp(x), 100.0, "aten.exp"),
    "div": (lambda x: x / x.sum(1, keepdim=True), 0.0, "aten.div"),
    "by zero": (lambda x: 1 / x, 0.0, "aten.reciprocal"),
    "softmax by hand": (lambda x: x.exp() / x.exp().sum(1, True), 100.0, "aten.exp"),
    "softmax of nothing": (
        lambda x: x.masked_fill(x < 0, -torch.inf).softmax(1),
        -1.0,
        "aten._softmax",
    ),
    "pow": (lambda x: x**0.5, -1.0, "aten.pow"),
    "cube": (lambda x: x**3, 1e20, "aten.pow"),
    "acos": (lambda x: torch.acos(x / 3), 4.0, "aten.acos"),
    "tan": (lambda x: torch.lgamma(x), -1.0, "aten.lgamma"),
    "mul": (lambda x: x * x * x, 1e20, "aten.mul"),
    "log_": (lambda x: x.clone().log_(), -1.0, "aten.log_"),
    "div_": (lambda x: x.clone().div_(x), 0.0, "aten.div_"),
    "norm by hand": (lambda x: x / x.square().sum(1, True).sqrt(), 0.0, "aten.div"),
    "cosh": (lambda x: x.cosh().log(), 100.0, "aten.cosh"),
}


@pytest.mark.parametrize("name", FORWARD)
def test_an_operation_of_the_forward_pass_is_found_with_line_and_rows(name):
    function, value, operation = FORWARD[name]
    report = found(function, table(row1=value, row4=value))
    assert (report.phase, report.module) == ("forward", "inner.part")
    assert report.operation == operation
    # A lambda of several lines may be located at its first or second line.
    first = line_of(function)
    assert report.source in (first, line_of(function, 1))
    assert report.rows == (1, 4)


def test_the_first_of_several_failed_operations_is_reported():
    report = found(lambda x: torch.exp(torch.sqrt(x - 5)) / 0, table())
    assert report.operation == "aten.sqrt"
    assert report.rows == (0, 1, 2, 3, 4, 5)


def test_a_nonfinite_weight_is_reported_by_name():
    module = Net(torch.tanh)
    with torch.no_grad():
        module.first.weight[0, 0] = torch.nan
    report = diagnose(module, F.mse_loss, table(), torch.ones(6, 1))
    assert report.evidence == (
        "The weight 'first.weight' is not finite before the first step: 1 of 9 entries."
    )
    assert report.module == "first"


def view_in_place(x):
    y = x.clone()
    y[:, 0].log_()
    return y


def assigned(x):
    y = x.clone()
    y[:, 1] = torch.log(x[:, 1])
    return y


def augmented(x):
    y = x.clone()
    y /= x.sum(1, keepdim=True) * 0
    return y


@pytest.mark.parametrize(
    ("function", "operation", "below"),
    [
        (view_in_place, "aten.log_", 2),
        (assigned, "aten.log", 2),
        (augmented, "aten.div_", 2),
    ],
)
def test_in_place_operations_are_found(function, operation, below):
    report = found(function, table(row3=-1.0))
    assert (report.operation, report.source) == (operation, line_of(function, below))
    assert 3 in report.rows


def test_a_decomposition_that_raises_is_found_with_line_and_rows():
    def function(x):
        return torch.linalg.cholesky(torch.diag_embed(x)).sum(1)

    report = found(function, table(row2=-1.0))
    assert (report.phase, report.cause) == ("forward", "architecture")
    assert report.operation == "aten.linalg_cholesky_ex"
    assert report.source == line_of(function, 1)
    assert report.rows == (2,)


# -- memory that is not written yet --------------------------------------------------


@pytest.fixture
def nan_memory():
    """Fill memory that is not written yet with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def filled_by_rows(x):
    y = torch.empty_like(x)
    for i in range(len(x)):
        y[i] = torch.log(x[i])
    return y


def filled_by_columns(x):
    y = torch.empty(len(x), 3)
    y[:, :1] = x[:, :1]
    y[:, 1:] = x[:, 1:]
    return y.log_()


def masked(x):
    mask = torch.empty(3)
    mask[:1].fill_(-torch.inf)
    mask[1:] = 0.0
    return torch.softmax(torch.log(x) + mask, 1)


WRITTEN = {
    "out": lambda x: x * torch.log(x.detach(), out=torch.empty_like(x.detach())),
    "rows": filled_by_rows,
    "columns": filled_by_columns,
    "copied": lambda x: torch.empty(len(x), 3).copy_(x).log_(),
    "of a constant": lambda x: x.new_empty(3).fill_(1.0) * torch.log(x),
    "mask": masked,
}


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("name", WRITTEN)
def test_memory_that_is_written_before_it_is_read_is_not_blamed(name):
    report = found(WRITTEN[name], table(row2=-1.0))
    assert report.operation.rstrip("_") == "aten.log"
    assert (report.cause, report.rows) == ("activation", (2,))
    assert found(WRITTEN[name], table()) is None


@pytest.mark.usefixtures("nan_memory")
def test_memory_that_is_read_before_it_is_written_is_blamed():
    def function(x):
        y = torch.empty_like(x)
        y[:, :2] = x[:, :2]
        y.add_(1.0)
        return x * y

    report = found(function, table())
    assert (report.cause, report.operation) == ("architecture", "aten.empty_like")
    assert report.source == line_of(function, 1)
    assert report.action == (
        "Write all numbers of the tensor before they are read, or create it with "
        "torch.zeros."
    )


# -- numbers that are not to blame ---------------------------------------------------


def test_a_branch_that_does_not_reach_the_loss_is_not_blamed():
    def function(x):
        with torch.no_grad():
            torch.log(x - 5)
            torch.where(x > 5, torch.log(x - 5), x)
        return torch.sqrt(x)

    assert found(function, table()) is None
    report = found(function, table(row2=-1.0))
    assert (report.operation, report.source) == ("aten.sqrt", line_of(function, 4))


def test_overwritten_numbers_are_not_blamed():
    def function(x):
        y = torch.log(x.detach() - 5)
        y.fill_(1.0)
        return torch.sqrt(y * x)

    assert found(function, table()) is None
    assert found(function, table(row2=-1.0)).operation == "aten.sqrt"


def test_a_nan_that_is_replaced_by_a_number_is_not_blamed():
    assert found(lambda x: x + torch.log(x.detach() - 5).nan_to_num(), table()) is None


MASKS = {
    "masked_fill": lambda x: x.masked_fill(x > 1.7, -torch.inf),
    "where": lambda x: torch.where(x > 1.7, -torch.inf, x),
    "added": lambda x: x + torch.zeros(3).masked_fill_(torch.eye(3)[0] > 0, -torch.inf),
    "tensor": lambda x: x + torch.tensor([0.0, -torch.inf, 0.0]),
    "full": lambda x: x + torch.full((3, 3), -torch.inf).triu(1)[1],
    "log of 0 and 1": lambda x: x + torch.tensor([0.0, -torch.inf, 1.0]).exp().log(),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_infinities_is_not_blamed(name):
    mask, X = MASKS[name], table()
    assert found(lambda x: torch.softmax(mask(x), 1), X) is None
    report = found(lambda x: torch.log(torch.softmax(mask(x), 1) * -1), X)
    assert report.operation == "aten.log"


def test_a_constant_mask_does_not_hide_a_later_failure():
    mask = MASKS["tensor"]
    report = found(lambda x: torch.softmax(mask(x) + torch.log(x), 1), table(row2=-1.0))
    assert (report.operation, report.rows) == ("aten.log", (2,))


@pytest.mark.parametrize("reduce", [torch.logsumexp, torch.amax])
def test_a_reduction_over_nothing_is_blamed_for_a_later_nan(reduce):
    def function(x):
        masked = x.masked_fill(x < 0, -torch.inf)
        total = reduce(masked, dim=1)[:, None]
        return total - total.detach() + x

    X = table()
    assert found(function, X) is None
    X[2] = -1.0
    report = found(function, X)
    assert (report.source, report.rows) == (line_of(function, 2), (2,))

    def unaffected(x):
        masked = x.detach().masked_fill(x < 0, -torch.inf)
        return torch.where(x > 0, reduce(masked, dim=1)[:, None], x)

    assert found(unaffected, X) is None


def test_a_logarithm_of_zero_is_a_valid_argument_of_logsumexp():
    def function(x):
        log_mask = torch.log((x.detach() > 1.2).float())
        return torch.logsumexp(x + log_mask, 1, keepdim=True).expand(-1, 3)

    X = table() + 1.0
    X[:, 0] = 1.0  # is masked in each row
    assert found(function, X) is None
    X[4] = 1.0
    report = found(function, X)
    assert (report.operation, report.rows) == ("aten.logsumexp", (4,))
    assert report.source == line_of(function, 2)


def test_masked_outputs_do_not_hide_a_later_failure():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            scores = torch.sqrt(self.scale * x)
            return scores.masked_fill(torch.eye(3)[0] > 0, -torch.inf)

    report = diagnose(Head(), lambda o, y: o[:, 1:].mean(), table(row2=0.0), table())
    assert (report.phase, report.operation, report.rows) == (
        "backward",
        "aten.sqrt",
        (2,),
    )


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("mask", torch.full((3,), -torch.inf))
        self.mask[0] = 0.0

    def forward(self, x):
        return torch.softmax(self.linear(x) + self.mask, dim=1)


def test_a_mask_in_a_buffer_is_not_blamed():
    assert diagnose(Masked(), F.mse_loss, table(), torch.ones(6, 3)) is None


def test_a_nan_is_reported_even_if_the_loss_ignores_it():
    report = found(
        lambda x: torch.log(x), table(row2=-1.0), lambda o, y: o.nan_to_num().mean()
    )
    assert (report.phase, report.operation, report.rows) == (
        "forward",
        "aten.log",
        (2,),
    )


# -- modules -------------------------------------------------------------------------


def test_a_nested_module_is_reported_by_its_path():
    module = nn.Sequential(
        nn.Linear(3, 3),
        nn.Sequential(nn.Tanh(), nn.Sequential(nn.ReLU(), Operation(torch.log))),
    )
    report = diagnose(module, F.mse_loss, table(), torch.ones(6, 3))
    assert report.module == "1.1.1"
    assert report.source == line_of(Operation.forward, 1)


def test_a_module_with_two_paths_is_reported_by_the_first():
    part = Operation(torch.log)
    module = nn.ModuleDict({"a": part, "b": part})

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = module

        def forward(self, x):
            return self.parts["b"](x - 5)

    report = diagnose(Both(), F.mse_loss, table(), torch.ones(6, 3))
    assert report.module == "parts.a"


def test_the_outermost_module_has_an_empty_path():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x):
            h = self.linear(x)
            return torch.log(h * 0)

    report = diagnose(Root(), F.mse_loss, table(), torch.ones(6, 1))
    assert report.module == ""
    assert report.source == line_of(Root.forward, 2)
    assert str(report).startswith("Non-finite output of aten.log (")


def test_an_overflow_in_a_recurrent_layer_is_found_with_path_line_and_rows():
    module = Recurrent(nn.RNN, nonlinearity="relu")
    with torch.no_grad():
        for weight in module.cell.parameters():
            weight.mul_(1e10)
    report = diagnose(module, F.mse_loss, table(row3=1e30), torch.ones(6, 1))
    assert (report.phase, report.module) == ("forward", "cell")
    assert report.source == line_of(Recurrent.forward, 1)
    assert report.rows == (3,)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_nan_weight_of_a_recurrent_layer_is_found_with_path_and_line(kind):
    module = Recurrent(kind)
    with torch.no_grad():
        module.cell.weight_hh_l0[0, 1] = torch.nan
    report = diagnose(module, F.mse_loss, table(), torch.ones(6, 1))
    assert (report.phase, report.module) == ("forward", "cell")
    assert report.source == line_of(Recurrent.forward, 1)
    n_weights = module.cell.weight_hh_l0.numel()
    assert report.evidence == (
        "The weight 'cell.weight_hh_l0' is not finite before the first step: 1 of "
        f"{n_weights} entries."
    )


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_failure_after_a_recurrent_layer_is_not_blamed_on_the_layer(kind):
    class Behind(Recurrent):
        def forward(self, x):
            return torch.log(super().forward(x) * 0 - 1)

    report = diagnose(Behind(kind), F.mse_loss, table(), torch.ones(6, 1))
    assert (report.operation, report.module) == ("aten.log", "")
    assert diagnose(Recurrent(kind), F.mse_loss, table(), torch.ones(6, 1)) is None


def test_attention_over_masked_keys_only_is_found_with_path_line_and_rows():
    y = torch.ones(6, 1)
    assert diagnose(Attention(), F.mse_loss, table(), y) is None
    report = diagnose(Attention(), F.mse_loss, table(row2=-1.0), y)
    assert (report.phase, report.module) == ("forward", "attention")
    assert report.operation == "aten._softmax"
    assert report.source == line_of(Attention.forward, 2)
    assert report.rows == (2,)


def test_an_overflow_in_batch_normalization_is_found_with_its_path():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    report = diagnose(module, F.mse_loss, table() * 1e30, torch.ones(6, 1))
    assert report is not None  # its running variance is infinite
    assert report.module == "1"


class Counting(nn.Module):
    """A network of which only a buffer becomes NaN."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean.lerp_(x[x > 5].mean(), 0.1)
        return self.linear(x)


def test_a_buffer_that_alone_becomes_nan_is_found_with_its_line():
    report = diagnose(Counting(), F.mse_loss, table(), torch.ones(6, 1))
    assert (report.phase, report.operation) == ("forward", "aten.mean")
    assert report.source == line_of(Counting.forward, 1)
    assert report.cause == "architecture"


# -- dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_failures_under_autocast_are_found(dtype):
    def function(x):
        with torch.autocast("cpu", dtype):
            return torch.log(F.linear(x, torch.eye(3))).float()

    assert found(function, table()) is None
    report = found(function, table(row1=-1.0))
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert report.source == line_of(function, 2)
    assert report.rows == (1,)


def test_an_overflow_under_autocast_is_blamed_on_the_precision():
    def function(x):
        with torch.autocast("cpu", torch.float16):
            return F.linear(x, torch.eye(3) * 300).float()

    report = found(function, table(row1=300.0))
    assert (report.phase, report.cause) == ("forward", "precision")
    assert report.source == line_of(function, 2)
    assert report.rows == (1,)


def test_a_cast_that_overflows_is_blamed():
    report = found(lambda x: x.half().float(), table(row5=1e5))
    assert report.operation == "aten._to_copy"
    assert report.rows == (5,)


def test_a_failure_in_a_half_precision_module_is_found():
    module = Net(torch.square).half()
    X = table(row2=300.0).half()
    report = diagnose(module, F.mse_loss, X, torch.ones(6, 1).half())
    assert (report.operation, report.cause) == ("aten.square", "precision") or (
        report.operation == "aten.pow"
    )
    assert report.rows == (2,)


def test_a_failure_after_a_complex_operation_is_found():
    report = found(lambda x: torch.log(torch.fft.fft(x).abs() * -1), table())
    assert report.operation == "aten.log"


def test_finite_complex_numbers_give_no_report():
    assert found(lambda x: torch.fft.fft(x).abs(), table()) is None


def test_a_failure_in_a_complex_operation_is_found():
    def function(x):
        y = torch.complex(x, x)
        return (y / (y * 0)).real

    report = found(function, table())
    assert (report.phase, report.module) == ("forward", "inner.part")
    assert report.source == line_of(function, 2)
    assert report.operation == "aten.div"


def test_a_failure_in_an_integer_operation_is_found():
    codes = torch.tensor([[0, 1], [2, 0]])
    embedding = nn.Sequential(nn.Embedding(3, 2), Operation(lambda e: e.sum(1)))
    assert diagnose(embedding, F.mse_loss, codes, torch.ones(2, 2)) is None

    def function(e):
        share = codes / codes.sum(1, keepdim=True) / codes
        return e.sum(1) * share

    embedding[1].function = function
    report = diagnose(embedding, F.mse_loss, codes, torch.ones(2, 2))
    assert (report.operation, report.source) == ("aten.div", line_of(function, 1))
