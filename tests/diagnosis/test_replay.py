"""The operation, the module, the line and the rows that broke a step."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNet, NeuralNetClassifier
from torch import nn
from torch.utils.checkpoint import checkpoint

from sknan import GuardedNet, StableNetClassifier, StableNetRegressor
from sknan.diagnosis import diagnose
from sknan.diagnosis._module_names import ModuleNames
from sknan.diagnosis._replay import replay, trace_operations


def line_of(function, below=0):
    """``file:line`` of a function of this file, or some lines below its first."""
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno + below}"


def table(n_rows=6, n_columns=3, **rows):
    """Numbers between 1 and 2, but for some rows."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n_rows, n_columns, generator=generator) + 1.0
    for row, value in rows.items():
        X[int(row.removeprefix("row"))] = value
    return X


class Operation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Net(nn.Module):
    """A layer that changes nothing at first, an operation below it, and a head."""

    def __init__(self, function, width=3, n_outputs=1):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(width, width)
        self.inner = nn.ModuleDict({"part": Operation(function)})
        self.head = nn.Linear(width, n_outputs)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(width))
            self.first.bias.zero_()

    def forward(self, x):
        return self.head(self.inner["part"](self.first(x)))


def found(function, X, criterion=F.mse_loss, y=None, **options):
    y = torch.ones(len(X), 1) if y is None else y
    return diagnose(Net(function, X.shape[1], **options), criterion, X, y)


# -- forward -------------------------------------------------------------------------

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
def test_an_operation_of_the_forward_is_found_with_its_line_and_rows(name):
    function, value, operation = FORWARD[name]
    report = found(function, table(row1=value, row4=value))
    assert (report.phase, report.module) == ("forward", "inner.part")
    assert report.operation == operation
    # A call that is written over several lines is told by that of the call.
    first = line_of(function)
    assert report.source in (first, line_of(function, 1))
    assert report.rows == (1, 4)


def test_the_first_of_several_faults_is_named():
    report = found(lambda x: torch.exp(torch.sqrt(x - 5)) / 0, table())
    assert report.operation == "aten.sqrt"
    assert report.rows == (0, 1, 2, 3, 4, 5)


def test_a_call_over_several_lines_has_the_line_of_the_operation():
    def function(x):
        y = x * 2
        z = torch.log(y)
        return z + 1

    assert found(function, table(row2=-1.0)).source == line_of(function, 2)


class OwnLog(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.log(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class OwnSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad / 0.0


def test_an_operation_of_ones_own_is_told_by_its_line():
    report = found(lambda x: OwnLog.apply(x), table(row3=-1.0))
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert report.source == line_of(OwnLog.forward, 2)
    assert report.rows == (3,)


def test_a_slope_of_ones_own_is_told_by_the_line_that_calls_for_it():
    def function(x):
        return OwnSlope.apply(x)

    report = found(function, table())
    assert (report.phase, report.operation) == ("backward", "OwnSlope")
    assert report.module == "inner.part"
    assert report.source == line_of(function, 1)


def test_a_weight_that_is_not_finite_is_named():
    module = Net(torch.tanh)
    with torch.no_grad():
        module.first.weight[0, 0] = torch.nan
    report = diagnose(module, F.mse_loss, table(), torch.ones(6, 1))
    assert report.evidence == (
        "The weight 'first.weight' is not finite before the first step: 1 of 9 entries."
    )
    assert report.module == "first"


# -- backward ------------------------------------------------------------------------

BACKWARD = {
    "sqrt": (lambda x: torch.sqrt(x), 0.0, "aten.sqrt"),
    "root": (lambda x: x**0.5, 0.0, "aten.pow"),
    "norm by hand": (lambda x: x / (x.square().sum(1, True).sqrt() + 1), 0.0, "sqrt"),
    "sqrt trap": (lambda x: torch.where(x > 0, torch.sqrt(x), x), -1.0, "aten.sqrt"),
    "div trap": (lambda x: torch.where(x > 0, 1 / x, x), 0.0, "aten.reciprocal"),
    "log trap": (lambda x: torch.where(x > 0, torch.log(x), x), -0.0, "aten.log"),
    "masked trap": (lambda x: torch.log(x).masked_fill(x <= 0, 0.0), 0.0, "aten.log"),
    "acos": (lambda x: torch.acos(x / 4), 4.0, "aten.acos"),
    "asin": (lambda x: torch.asin(x / 4), 4.0, "aten.asin"),
    "hypot": (lambda x: torch.hypot(x, x), 0.0, "aten.hypot"),
    "sqrt_": (lambda x: (x * 1).sqrt_(), 0.0, "aten.sqrt_"),
    "cdist": (lambda x: x + (x - 1).square().sum(1, True).sqrt(), 1.0, "aten.sqrt"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_an_operation_of_the_backward_is_found_with_its_line_and_rows(name):
    function, value, operation = BACKWARD[name]
    report = found(function, table(row1=value, row4=value))
    assert (report.phase, report.module) == ("backward", "inner.part")
    assert report.operation.removeprefix("aten.") == operation.removeprefix("aten.")
    assert report.source == line_of(function)
    assert report.rows == (1, 4)


def test_a_gradient_that_overflows_is_found_where_it_does():
    report = found(
        lambda x: (x * 1e30).tanh() + x, table() * 0, lambda o, y: o.sum() * 1e20
    )
    assert (report.phase, report.operation) == ("backward", "aten.mul")
    assert report.module == "inner.part"


# -- what is not to blame ------------------------------------------------------------


def test_a_branch_that_goes_nowhere_is_not_blamed():
    def function(x):
        with torch.no_grad():
            torch.log(x - 5)
            torch.where(x > 5, torch.log(x - 5), x)
        return torch.sqrt(x)

    assert found(function, table()) is None
    report = found(function, table(row2=-1.0))
    assert (report.operation, report.source) == ("aten.sqrt", line_of(function, 4))


def test_numbers_that_are_written_over_are_not_blamed():
    def function(x):
        y = torch.log(x.detach() - 5)
        y.fill_(1.0)
        return torch.sqrt(y * x)

    assert found(function, table()) is None
    assert found(function, table(row2=-1.0)).operation == "aten.sqrt"


def test_nan_that_is_made_a_number_is_not_blamed():
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


def test_a_loss_that_makes_light_of_a_nan_does_not_hide_it():
    report = found(
        lambda x: torch.log(x), table(row2=-1.0), lambda o, y: o.nan_to_num().mean()
    )
    assert (report.phase, report.operation, report.rows) == (
        "forward",
        "aten.log",
        (2,),
    )


# -- losses --------------------------------------------------------------------------


def rmsle(output, target):
    return (torch.log1p(output.abs()) - torch.log1p(target)).square().mean()


class Relative(nn.Module):
    def forward(self, output, target):
        error = (output - target).abs()
        return (error / target).mean()


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Relative()

    def forward(self, output, target):
        return self.inner(output, target)


def test_a_loss_that_is_a_function_is_told_by_its_line():
    y = torch.ones(6, 1)
    y[4] = -2.0
    report = found(torch.tanh, table(), rmsle, y)
    assert (report.phase, report.module) == ("loss", "criterion")
    assert (report.operation, report.source) == ("aten.log1p", line_of(rmsle, 1))
    assert report.rows == (4,)


@pytest.mark.parametrize("criterion", [Relative(), Nested()])
def test_a_loss_that_is_a_module_is_told_by_its_line(criterion):
    y = torch.ones(6, 1)
    y[[0, 5]] = 0.0
    report = found(torch.tanh, table(), criterion, y)
    assert (report.phase, report.module) == ("loss", "criterion")
    assert report.operation == "aten.div"
    assert report.source == line_of(Relative.forward, 2)
    assert report.rows == (0, 5)


def test_a_loss_of_torchs_has_no_line_of_the_users():
    report = found(lambda x: x * 1e30, table(), nn.MSELoss())
    assert (report.phase, report.module) == ("loss", "criterion")
    assert (report.operation, report.source) == ("aten.mse_loss", None)


def test_labels_that_are_all_ignored_are_a_fault_of_the_loss():
    y = torch.full((6,), -100)
    report = found(torch.tanh, table(), nn.CrossEntropyLoss(), y, n_outputs=2)
    assert (report.phase, report.operation) == ("loss", "aten.nll_loss_forward")


def test_the_slope_of_a_loss_is_told_by_its_line():
    def root_of_squares(output, target):
        return torch.sqrt((output - target).square().mean())

    def same(x):
        return x * 0

    module = Net(same)
    nn.init.zeros_(module.head.bias)
    report = diagnose(module, root_of_squares, table(), torch.zeros(6, 1))
    assert (report.phase, report.module) == ("backward", "criterion")
    assert report.operation == "aten.sqrt"
    assert report.source == line_of(root_of_squares, 1)


# -- modules -------------------------------------------------------------------------


def test_nested_modules_are_told_by_their_path():
    module = nn.Sequential(
        nn.Linear(3, 3),
        nn.Sequential(nn.Tanh(), nn.Sequential(nn.ReLU(), Operation(torch.log))),
    )
    report = diagnose(module, F.mse_loss, table(), torch.ones(6, 3))
    assert report.module == "1.1.1"
    assert report.source == line_of(Operation.forward, 1)


def test_a_module_that_stands_in_two_places_is_told_by_the_first():
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


def test_the_forward_of_the_module_itself_has_no_path():
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


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.cell = kind(3, 4, batch_first=True, **options)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        states, _ = self.cell(x.unsqueeze(1).expand(-1, 4, -1))
        return self.head(states[:, -1])


def test_a_recurrence_that_overflows_is_told_by_path_line_and_rows():
    module = Recurrent(nn.RNN, nonlinearity="relu")
    with torch.no_grad():
        for weight in module.cell.parameters():
            weight.mul_(1e10)
    report = diagnose(module, F.mse_loss, table(row3=1e30), torch.ones(6, 1))
    assert (report.phase, report.module) == ("forward", "cell")
    assert report.source == line_of(Recurrent.forward, 1)
    assert report.rows == (3,)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrence_with_a_weight_of_nan_is_told_by_path_and_line(kind):
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
def test_a_fault_behind_a_recurrence_is_not_blamed_on_it(kind):
    class Behind(Recurrent):
        def forward(self, x):
            return torch.log(super().forward(x) * 0 - 1)

    report = diagnose(Behind(kind), F.mse_loss, table(), torch.ones(6, 1))
    assert (report.operation, report.module) == ("aten.log", "")
    assert diagnose(Recurrent(kind), F.mse_loss, table(), torch.ones(6, 1)) is None


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.embed = nn.Linear(1, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        series = self.embed(x.unsqueeze(-1))
        pooled, _ = self.attention(series, series, series, key_padding_mask=x < 0)
        return self.head(pooled[:, 0])


def test_attention_to_nothing_is_told_by_path_line_and_rows():
    y = torch.ones(6, 1)
    assert diagnose(Attention(), F.mse_loss, table(), y) is None
    report = diagnose(Attention(), F.mse_loss, table(row2=-1.0), y)
    assert (report.phase, report.module) == ("forward", "attention")
    assert report.operation == "aten._softmax"
    assert report.source == line_of(Attention.forward, 2)
    assert report.rows == (2,)


def test_batch_norm_of_huge_numbers_is_told_by_its_path():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    report = diagnose(module, F.mse_loss, table() * 1e30, torch.ones(6, 1))
    assert report is not None  # its running variance is infinite
    assert report.module == "1"


class Counting(nn.Module):
    """Only its buffer goes NaN."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean.lerp_(x[x > 5].mean(), 0.1)
        return self.linear(x)


def test_a_buffer_that_alone_goes_nan_is_told_by_its_line():
    report = diagnose(Counting(), F.mse_loss, table(), torch.ones(6, 1))
    assert (report.phase, report.operation) == ("forward", "aten.mean")
    assert report.source == line_of(Counting.forward, 1)
    assert report.cause == "architecture"


# -- dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_faults_under_autocast_are_found(dtype):
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


def test_a_module_in_half_precision_is_followed():
    module = Net(torch.square).half()
    X = table(row2=300.0).half()
    report = diagnose(module, F.mse_loss, X, torch.ones(6, 1).half())
    assert (report.operation, report.cause) == ("aten.square", "precision") or (
        report.operation == "aten.pow"
    )
    assert report.rows == (2,)


def test_a_fault_behind_complex_numbers_is_found():
    report = found(lambda x: torch.log(torch.fft.fft(x).abs() * -1), table())
    assert report.operation == "aten.log"


def test_complex_numbers_that_are_sound_pass():
    assert found(lambda x: torch.fft.fft(x).abs(), table()) is None


def test_complex_numbers_are_followed():
    def function(x):
        y = torch.complex(x, x)
        return (y / (y * 0)).real

    report = found(function, table())
    assert (report.phase, report.module) == ("forward", "inner.part")
    assert report.source == line_of(function, 2)
    assert report.operation == "aten.div"


def test_whole_numbers_are_followed():
    codes = torch.tensor([[0, 1], [2, 0]])
    embedding = nn.Sequential(nn.Embedding(3, 2), Operation(lambda e: e.sum(1)))
    assert diagnose(embedding, F.mse_loss, codes, torch.ones(2, 2)) is None

    def function(e):
        share = codes / codes.sum(1, keepdim=True) / codes
        return e.sum(1) * share

    embedding[1].function = function
    report = diagnose(embedding, F.mse_loss, codes, torch.ones(2, 2))
    assert (report.operation, report.source) == ("aten.div", line_of(function, 1))


# -- in place ------------------------------------------------------------------------


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
def test_operations_in_place_are_found(function, operation, below):
    report = found(function, table(row3=-1.0))
    assert (report.operation, report.source) == (operation, line_of(function, below))
    assert 3 in report.rows


# -- odd ways to run a module --------------------------------------------------------


# Where a row is tried by itself no gradient is asked for.
without_gradient = pytest.mark.filterwarnings("ignore:None of the inputs have requires")


@without_gradient
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts_are_followed(reentrant):
    def function(x):
        return checkpoint(torch.log, x, use_reentrant=reentrant)

    assert found(function, table()) is None
    report = found(function, table(row1=-1.0))
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert report.source == line_of(function, 1)
    assert report.rows == (1,)


@pytest.mark.parametrize("reentrant", [False, True])
def test_slopes_of_checkpointed_parts_are_followed(reentrant):
    def function(x):
        return checkpoint(torch.sqrt, x, use_reentrant=reentrant)

    report = found(function, table(row1=0.0))
    assert report.phase == "backward"
    assert report.module == "inner.part"
    assert report.source == line_of(function, 1)
    if not reentrant:
        assert report.operation == "aten.sqrt"
        assert report.rows == (1,)


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        return torch.jit.script(module)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return torch.log(self.linear(x) * 0 - 1)


@pytest.mark.parametrize(
    "wrapped",
    [scripted, lambda module: torch.compile(module, backend="eager")],
    ids=["scripted", "compiled"],
)
def test_a_module_that_is_no_python_any_more_is_told_at_least_by_its_phase(wrapped):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = diagnose(wrapped(Plain()), F.mse_loss, table(), torch.ones(6, 3))
        sound = diagnose(
            wrapped(nn.Linear(3, 3)), F.mse_loss, table(), torch.ones(6, 3)
        )
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert sound is None


def test_an_error_that_has_nothing_to_do_with_numbers_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        diagnose(nn.Linear(4, 1), F.mse_loss, table(), torch.ones(6, 1))


def test_a_decomposition_that_raises_is_told_by_line_and_rows():
    def function(x):
        return torch.linalg.cholesky(torch.diag_embed(x)).sum(1)

    report = found(function, table(row2=-1.0))
    assert (report.phase, report.cause) == ("forward", "architecture")
    assert report.operation == "aten.linalg_cholesky_ex"
    assert report.source == line_of(function, 1)
    assert report.rows == (2,)


# -- nets ----------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return torch.log(x)


class TwoModules(NeuralNet):
    def initialize_module(self):
        super().initialize_module()
        self.encoder_ = Encoder()
        return self

    def infer(self, x, **fit_params):
        return self.module_(self.encoder_(x))


class TwoGuarded(GuardedNet):
    infer = TwoModules.infer

    def initialize_module(self):
        super().initialize_module()
        self.encoder_ = Encoder()
        return self


@pytest.mark.parametrize("kind", [TwoModules, TwoGuarded])
def test_of_several_modules_each_is_told_by_its_name(kind):
    net = kind(nn.Linear, nn.MSELoss, module__in_features=3, module__out_features=1)
    net.initialize()
    X = table(row4=-1.0).numpy()
    report = diagnose(net, X, np.ones((6, 1), dtype="float32"))
    assert (report.phase, report.module) == ("forward", "encoder")
    assert report.source == line_of(Encoder.forward, 1)
    assert report.rows == (4,)
    net.module_.weight.data.fill_(1e38)
    report = diagnose(net, np.full((6, 3), 1e10, "float32"), np.ones((6, 1), "float32"))
    assert (report.module, report.operation) == ("", "aten.addmm")


def test_a_net_of_skorchs_is_diagnosed_with_its_own_loss():
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)), criterion=nn.NLLLoss
    ).initialize()
    labels = np.array([0, 1, 0, 1, 0, 1])
    assert diagnose(net, table().numpy(), labels) is None
    with torch.no_grad():
        net.module_[0].weight.fill_(torch.nan)
    report = diagnose(net, table().numpy(), labels)
    assert report.module == "0"
    with pytest.raises(TypeError, match=r"Call initialize\(\) or fit\(\) first"):
        diagnose(NeuralNetClassifier(nn.Linear), table().numpy(), labels)


@pytest.mark.parametrize("kind", [StableNetRegressor, StableNetClassifier])
def test_a_fitted_estimator_is_diagnosed_on_rows_that_break_it(kind):
    class Log(nn.Module):
        def __init__(self, n_features_in, n_outputs):
            super().__init__()
            self.linear = nn.Linear(n_features_in, n_outputs)

        def forward(self, x):
            return self.linear(torch.log(x))

    X = table(40).numpy()
    y = (X[:, 0] > 1.5).astype(int)
    model = kind(Log, max_epochs=2, random_state=0).fit(X, y)
    assert diagnose(model, X, y) is None
    X[7, 1] = -1.0
    report = diagnose(model, X, y)
    assert (report.operation, report.rows, report.columns) == ("aten.log", (7,), (1,))
    assert report.source == line_of(Log.forward, 1)


# -- nothing is changed --------------------------------------------------------------


class Busy(nn.Module):
    """Running statistics, random numbers and weights that are used twice."""

    def __init__(self, n_features_in=3, n_outputs=1, is_fragile=False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features_in, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.5),
            nn.Tanh(),
            nn.Linear(8, n_outputs),
        )
        self.register_buffer("n_calls", torch.zeros(()))
        self.is_fragile = is_fragile

    def forward(self, x):
        self.n_calls += 1
        output = self.body(x)
        return torch.log(output - 100) if self.is_fragile else output


def everything(module):
    """Copies of weights, buffers, gradients and modes; and how many hooks there are."""
    tensors = [*module.state_dict().values()]
    tensors += [p.grad for p in module.parameters() if p.grad is not None]
    modes = [part.training for part in module.modules()]
    hooks = [
        len(part._forward_hooks) + len(part._forward_pre_hooks)
        for part in module.modules()
    ]
    return [t.clone() for t in tensors], modes, hooks


def is_same(before, after):
    return (
        len(before[0]) == len(after[0])
        and all(map(torch.equal, before[0], after[0]))
        and before[1:] == after[1:]
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("is_fragile", [True, False])
def test_a_diagnosis_of_a_module_changes_nothing(is_fragile, training):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - it is this state that must stay
    X, y = table(16), torch.ones(16, 1)
    module = Busy(is_fragile=is_fragile).train(training)
    F.mse_loss(module.body(X), y).backward()
    before, X_before = everything(module), X.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    report = diagnose(module, nn.MSELoss(), X, y)
    assert (report is not None) == is_fragile
    assert is_same(before, everything(module))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(X, X_before)
    assert X.grad is None
    assert not torch.is_anomaly_enabled()
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("is_fragile", [True, False])
@pytest.mark.parametrize("kind", [NeuralNet, GuardedNet])
def test_a_diagnosis_of_a_net_changes_nothing(kind, is_fragile):
    torch.manual_seed(0)
    X, y = table(16).numpy(), np.ones((16, 1), dtype="float32")
    options = {"max_epochs": 2, "verbose": 0, "optimizer": torch.optim.Adam}
    net = kind(Busy, nn.MSELoss, **options).fit(X, y)
    net.module_.is_fragile = is_fragile
    net.module_.eval()
    before, history = everything(net.module_), copy.deepcopy(list(net.history))
    moments = copy.deepcopy(net.optimizer_.state_dict())
    state = torch.get_rng_state()
    report = diagnose(net, X, y)
    assert (report is not None) == is_fragile
    assert is_same(before, everything(net.module_))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(net.history) == history
    after = net.optimizer_.state_dict()
    assert after["param_groups"] == moments["param_groups"]
    for number, kept in moments["state"].items():
        for name, value in kept.items():
            assert torch.equal(after["state"][number][name], value)


def test_a_diagnosis_under_no_grad_works_too():
    with torch.no_grad():
        report = found(torch.sqrt, table(row1=0.0))
        assert not torch.is_grad_enabled()
    assert report.phase == "backward"


SOUND = {
    "linear": lambda: nn.Linear(3, 1),
    "busy": Busy,
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "attention": Attention,
    "large": lambda: Net(lambda x: x * 1e15),
}


@pytest.mark.parametrize("name", SOUND)
def test_on_sound_input_there_is_nothing_to_say(name):
    torch.manual_seed(0)
    module = SOUND[name]()
    assert diagnose(module, nn.MSELoss(), table(), torch.ones(6, 1)) is None
    assert diagnose(module, nn.MSELoss(), table().numpy(), np.ones((6, 1))) is None


def test_a_frozen_network_is_diagnosed_forward():
    module = Net(torch.log).requires_grad_(False)
    assert diagnose(module, F.mse_loss, table(), torch.ones(6, 1)) is None
    report = diagnose(module, F.mse_loss, table(row2=-1.0), torch.ones(6, 1))
    assert report.operation == "aten.log"


# -- by hand -------------------------------------------------------------------------


def test_a_replay_that_raises_tells_what_it_has_seen_until_then():
    module = Operation(torch.log)

    def run():
        module(torch.tensor([[-1.0]]))
        raise KeyError("later")

    finding = replay(run, ModuleNames({"module": module}, []), (), 1)
    assert (finding.operation, finding.module) == ("aten.log", "")
    assert not nn.modules.module._global_forward_hooks


def test_a_replay_that_raises_before_anything_finds_nothing():
    def run():
        raise KeyError("at once")

    assert replay(run, ModuleNames({}, []), (), 1) is None


def test_any_code_can_be_traced():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float16))
    weight.grad = torch.tensor([1e-6], dtype=torch.float16)
    optimizer = torch.optim.Adam([weight], eps=1e-8)
    finding = trace_operations(optimizer.step)
    assert finding.operation.startswith("aten.addcdiv")
    assert finding.dtype is torch.float16
    weight.grad.fill_(1.0)
    assert trace_operations(lambda: weight.detach() * 2) is None
