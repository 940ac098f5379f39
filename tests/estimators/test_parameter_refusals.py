"""Complete messages for components and parameters that the estimators refuse."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sknan import (
    GuardedNetRegressor,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetRegressor,
)
from sknan.losses import CLASSIFICATION_LOSSES, REGRESSION_LOSSES
from sknan.persistence import to_torch

X = np.random.default_rng(0).normal(size=(12, 3))
LABELS = np.arange(12) % 2
VALUES = X[:, 0] + 2 * X[:, 1]

PREFIXES = (
    "Parameters of the network's parts are written module__..., criterion__..., "
    "optimizer__...."
)

ESTIMATORS = [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)]
both = pytest.mark.parametrize(
    ("Estimator", "y"), ESTIMATORS, ids=["classifier", "regressor"]
)


def classifier(**params):
    return StableNetClassifier(max_epochs=1, random_state=0).set_params(**params)


def regressor(**params):
    return StableNetRegressor(max_epochs=1, random_state=0).set_params(**params)


def refusal(error, function, *args, **params):
    """Return the message of the error that the call raises, of exactly this class."""
    with pytest.raises(error) as caught:
        function(*args, **params)
    assert type(caught.value) is error
    return str(caught.value)


class OneRow(nn.Module):
    """Module whose output always has one row."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, X):
        return self.linear(X).sum(dim=0, keepdim=True)


# -- the module --------------------------------------------------------------------


def test_a_module_too_wide_for_the_classes_is_refused():
    assert refusal(ValueError, classifier(module=nn.Linear(3, 5)).fit, X, LABELS) == (
        "The module's output has shape (12, 5), but 2 classes need one logit each: "
        "(12, 2). Let the module's constructor take n_outputs, and it is filled in."
    )


def test_a_module_without_a_column_of_logits_is_refused():
    flat = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    assert refusal(ValueError, classifier(module=flat).fit, X, LABELS) == (
        "The module's output has shape (12,), but 2 classes need one logit each: "
        "(12, 2). Let the module's constructor take n_outputs, and it is filled in."
    )


@pytest.mark.parametrize(
    ("targets", "count", "needed"),
    [(VALUES, "1 target column", "(12, 1)"), (X[:, :2], "2 target columns", "(12, 2)")],
)
def test_a_module_too_wide_for_the_targets_is_refused(targets, count, needed):
    assert refusal(ValueError, regressor(module=nn.Linear(3, 5)).fit, X, targets) == (
        f"The module's output has shape (12, 5), but y has {count}: {needed} is "
        "needed. Let the module's constructor take n_outputs, and it is filled in."
    )


def test_a_binary_loss_needs_one_logit():
    model = classifier(module=nn.Linear(3, 2), criterion="binary_cross_entropy")
    assert refusal(ValueError, model.fit, X, LABELS) == (
        "The module's output has shape (12, 2), but criterion BCEWithLogitsLoss needs "
        "one logit per row: (12, 1)."
    )


def test_a_module_that_does_not_return_one_row_per_sample_is_refused():
    assert refusal(ValueError, classifier(module=OneRow).fit, X, LABELS) == (
        "The module must return a tensor with one row per sample, got (1, 2) for 12 "
        "samples."
    )


class Odd(nn.Module):
    """Linear layer with a fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.layer = nn.Linear(3, 1, device="meta" if fault == "meta" else None)
        if fault == "expanded":
            self.layer.bias = nn.Parameter(torch.zeros(1).expand(2))
        if fault == "sparse buffer":
            self.register_buffer("links", torch.eye(3).to_sparse())
        if fault in ("float8", "double"):
            self.layer.to(torch.float64 if fault == "double" else torch.float8_e5m2)
        if fault == "sparse":
            self.layer = nn.Embedding(12, 1, sparse=True)

    def forward(self, X):
        if self.fault == "sparse":
            return self.layer(torch.arange(len(X)))
        output = self.layer(X)
        others = {
            "complex": output + 0j,
            "sparse output": output.to_sparse(),
            "float8 output": output.to(torch.float8_e5m2),
            "detached": output.detach(),
            "in a dict": {"output": output},
        }
        return others.get(self.fault, output)


NOT_REAL = (
    "TypeError: The module returns {}, but the loss needs one tensor of real numbers. "
    "Return only that tensor from forward, or pass a criterion that takes the whole "
    "output."
)
ODD = {
    "meta": "ValueError: The tensor 'layer.weight' of Odd is on the device 'meta' and "
    "has no values. Create the module on another device, or call its "
    "to_empty(device='cpu') and set its values.",
    "expanded": "ValueError: The tensor 'layer.bias' of Odd has several entries in one "
    "place of memory, as after expand(), and cannot be trained. Call clone() on it "
    "before nn.Parameter.",
    "sparse": "ValueError: The gradient of 'layer.weight' is sparse, which the "
    "optimizer does not support. Create the embedding with sparse=False.",
    "detached": "ValueError: The loss has no gradient with respect to any weight. Look "
    "in forward and in the loss for detach(), torch.no_grad(), "
    "torch.inference_mode(), argmax or a use of NumPy, and leave it out.",
    "sparse buffer": "ValueError: The tensor 'links' of Odd has the layout "
    "torch.sparse_coo, whose values are not checked. Call to_dense() on it, or "
    "to_padded_tensor(0.0) if it is nested.",
    "float8": "ValueError: The tensor 'layer.weight' of Odd is of type "
    "torch.float8_e5m2, in which torch does not compute. Convert it to a wider type, "
    "for example by float().",
    "double": "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and "
    "Double. X is float32, and weights of the network are float64: call float() on "
    "the module.",
    "sparse output": NOT_REAL.format("a sparse or nested tensor"),
    "float8 output": NOT_REAL.format("numbers of torch.float8_e5m2"),
    "complex": NOT_REAL.format("complex numbers"),
    "in a dict": NOT_REAL.format("a dict"),
}


@pytest.mark.parametrize("fault", ODD)
def test_a_network_that_cannot_be_trained_is_refused_by_net_and_estimator(fault):
    inputs, targets = X.astype(np.float32), VALUES[:, None].astype(np.float32)
    options = {"module__fault": fault, "max_epochs": 1}
    net = GuardedNetRegressor(Odd, optimizer=torch.optim.Adam, verbose=0, **options)
    for model in (net, StableNetRegressor(Odd, random_state=0, **options)):
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            model.fit(inputs, targets)
        found = f"{type(caught.value).__name__}: {caught.value}"
        if fault == "in a dict" and model is not net:
            assert "one row per sample, got <class 'dict'>" in found
        else:
            assert found == ODD[fault]


@pytest.mark.parametrize(
    "convert", [torch.Tensor.to_sparse, lambda x: x.to(torch.float8_e5m2)]
)
def test_a_tensor_that_numpy_cannot_read_is_refused_by_name(convert):
    inputs, targets = torch.ones(4, 3), torch.ones(4, 1)
    found = "is a nested or sparse tensor, or of type float8. Pass "
    found += "to_padded_tensor(0.0), to_dense() or float() of it."
    net = GuardedNetRegressor(nn.Linear(3, 1), verbose=0)
    assert refusal(TypeError, net.fit, convert(inputs), targets) == f"X {found}"
    message = refusal(TypeError, regressor().fit, convert(inputs), targets[:, 0])
    assert message == f"The table or target {found}"


class Locked(nn.Linear):
    """Linear layer with a lock."""

    def __init__(self):
        super().__init__(3, 1)
        self.lock = threading.Lock()


def scripted():
    return torch.jit.script(nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            Locked,
            "because of its attribute 'lock': cannot pickle '_thread.lock' object. "
            "Create it in forward, or leave it out in a __getstate__ of Locked.",
        ),
        (
            scripted,
            "because torch.jit has compiled it. Use the module before "
            "torch.jit.script or torch.jit.trace.",
        ),
    ],
)
def test_a_network_without_pickles_is_trained_and_says_so(make, reason):
    inputs, targets = X.astype(np.float32), VALUES[:, None].astype(np.float32)
    net = GuardedNetRegressor(make, max_epochs=1, verbose=0).fit(inputs, targets)
    model = regressor(module=make, lr="auto").fit(inputs, targets)
    message = f"The module cannot be pickled or copied, {reason}"
    for call in (pickle.dumps, copy.deepcopy):
        assert refusal(TypeError, call, net) == message
        assert refusal(TypeError, call, model) == message
    assert refusal(TypeError, to_torch, model) == message
    instance = make()
    assert refusal(ValueError, regressor(module=instance).fit, X, VALUES) == (
        "StableNetRegressor trains a copy of an instance, but "
        f"{type(instance).__name__} cannot be copied: {message} Pass a class or a "
        "function that returns a new module."
    )


def test_the_error_of_a_module_gets_a_note_with_the_shape_of_x():
    with pytest.raises(RuntimeError) as caught:
        classifier(module=nn.Linear(7, 2)).fit(X, LABELS)
    assert caught.value.__notes__ == [
        "while calling the module Linear on X of shape (12, 3)"
    ]


def test_a_name_is_not_a_module():
    assert refusal(ValueError, classifier(module="mlp").fit, X, LABELS) == (
        "module must be a torch.nn.Module class or instance, a function that returns "
        "one, or None, got 'mlp'."
    )


def test_non_finite_initial_weights_are_refused():
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    assert refusal(
        NonFiniteTrainingError, classifier(module=module).fit, X, LABELS
    ) == (
        "Non-finite output of aten.addmm. The weight 'weight' is not finite before the "
        "first step: 1 of 6 entries. Initialize it, or check the weights that were "
        "loaded."
    )


# -- the criterion -----------------------------------------------------------------


def test_a_loss_of_probabilities_refuses_logits():
    model = classifier(module=nn.Linear(3, 1), criterion=nn.BCELoss)
    with torch.no_grad():
        model.module.weight.fill_(0.0)
        model.module.bias.fill_(-2.5)
    assert refusal(ValueError, model.fit, X, LABELS) == (
        "Criterion BCELoss needs probabilities, but the module's output ranges from "
        "-2.5 to -2.5. Use criterion='binary_cross_entropy', which takes logits, or "
        "end the module with a sigmoid."
    )


def test_a_softmax_before_a_loss_of_logits_gives_a_warning():
    model = classifier(module=nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)))
    with pytest.warns(UserWarning, match="are probabilities") as caught:
        model.fit(X, LABELS)
    assert str(caught[0].message) == (
        "The rows of the module's output are probabilities, but criterion "
        "CrossEntropyLoss takes logits: a second softmax slows training down. Remove "
        "the softmax from the module."
    )
    assert caught[0].filename == __file__


def test_a_loss_of_log_probabilities_refuses_logits():
    assert refusal(ValueError, classifier(criterion=nn.NLLLoss).fit, X, LABELS) == (
        "Criterion NLLLoss needs log-probabilities, but the rows of the module's "
        "output are not log-probabilities. Use criterion='cross_entropy', which takes "
        "logits, or end the module with a log-softmax."
    )


def test_a_binary_loss_refuses_three_classes():
    model = classifier(criterion="binary_cross_entropy")
    assert refusal(ValueError, model.fit, X, np.arange(12) % 3) == (
        "criterion='binary_cross_entropy' is for 2 classes, but y contains 3. Use "
        "criterion='cross_entropy'."
    )


CLASS_LOSSES = ", ".join(repr(name) for name in CLASSIFICATION_LOSSES)
VALUE_LOSSES = ", ".join(repr(name) for name in REGRESSION_LOSSES)


def test_a_loss_for_the_other_task_is_refused():
    assert refusal(ValueError, classifier(criterion="mse").fit, X, LABELS) == (
        "criterion='mse' is for regression, but StableNetClassifier does "
        f"classification. Choose one of: {CLASS_LOSSES}."
    )
    assert refusal(ValueError, regressor(criterion="cross_entropy").fit, X, VALUES) == (
        "criterion='cross_entropy' is for classification, but StableNetRegressor does "
        f"regression. Choose one of: {VALUE_LOSSES}."
    )


@pytest.mark.parametrize(
    "make", [lambda loss: loss, lambda loss: loss()], ids=["class", "instance"]
)
def test_a_torch_loss_for_the_other_task_is_refused(make):
    model = classifier(criterion=make(nn.MSELoss))
    assert refusal(ValueError, model.fit, X, LABELS) == (
        "criterion=MSELoss is for regression, but StableNetClassifier does "
        f"classification. Choose one of: {CLASS_LOSSES}."
    )
    model = regressor(criterion=make(nn.CrossEntropyLoss))
    assert refusal(ValueError, model.fit, X, VALUES) == (
        "criterion=CrossEntropyLoss is for classification, but StableNetRegressor does "
        f"regression. Choose one of: {VALUE_LOSSES}."
    )


def mean_square(output, target):
    return (output - target).square().mean()


def test_weights_need_a_loss_per_row():
    model = regressor(criterion=mean_square)
    assert refusal(ValueError, model.fit, X, VALUES, np.arange(12)) == (
        "sample_weight and class_weight need a loss per row, but mean_square has no "
        "'reduction' to turn off. Use a criterion by name, or one whose reduction can "
        "be 'none'."
    )


def test_unknown_criteria_are_refused():
    known = f"Known criteria: {CLASS_LOSSES}, {VALUE_LOSSES}."
    assert refusal(ValueError, classifier(criterion="cross_entrpy").fit, X, LABELS) == (
        f"Unknown criterion 'cross_entrpy'. Did you mean 'cross_entropy'? {known}"
    )
    assert refusal(ValueError, regressor(criterion="zzz").fit, X, VALUES) == (
        f"Unknown criterion 'zzz'. {known}"
    )
    assert refusal(ValueError, regressor(criterion=3).fit, X, VALUES) == (
        "criterion must be a name, a torch.nn.Module class or instance, or a function, "
        "got 3."
    )


# -- optimizer, schedule, device ---------------------------------------------------


def test_unknown_optimizers_are_refused():
    assert refusal(ValueError, classifier(optimizer="adamww").fit, X, LABELS) == (
        "Unknown optimizer 'adamww'. Did you mean 'adamw'? Known optimizers: 'adamw', "
        "'adam', 'sgd', 'nadam', 'radam', 'rmsprop', 'adagrad'."
    )


def test_a_number_is_not_an_optimizer():
    assert refusal(ValueError, classifier(optimizer=3).fit, X, LABELS) == (
        "optimizer must be a name or a class of torch.optim, got 3."
    )


def test_unknown_schedules_are_refused():
    known = (
        "Known schedules: 'constant', 'cosine', 'coslog4', 'exponential', 'one_cycle', "
        "'plateau', 'step'."
    )
    assert refusal(ValueError, classifier(lr_schedule="cosin").fit, X, LABELS) == (
        f"Unknown lr_schedule 'cosin'. Did you mean 'cosine'? {known}"
    )
    assert refusal(ValueError, classifier(lr_schedule="zzz").fit, X, LABELS) == (
        f"Unknown lr_schedule 'zzz'. {known}"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_unavailable_device_is_refused():
    assert refusal(ValueError, classifier(device="cuda").fit, X, LABELS) == (
        "device='cuda' is not available here. Use device='cpu', or device='auto' for "
        "the GPU if there is one."
    )


def test_an_unknown_device_is_refused():
    assert refusal(ValueError, classifier(device="gpu").fit, X, LABELS) == (
        "device must be a torch device such as 'cpu' or 'cuda', or 'auto', got 'gpu'."
    )


# -- parameters --------------------------------------------------------------------


AT_LEAST_ONE = "an integer of at least 1"

WRONG_VALUES = [
    *[
        ("lr", v, "a finite number above 0 or 'auto'")
        for v in (0, -1, -0.1, 0.0, True, None)
    ],
    *[
        ("lr", v, "a finite number above 0 or 'auto'")
        for v in (np.nan, np.inf, 10**400, "0.1", [0.1])
    ],
    *[
        ("max_epochs", v, f"{AT_LEAST_ONE} or 'auto'")
        for v in (0, -3, 2.5, True, 10**30, "10", None)
    ],
    *[
        ("batch_size", v, f"{AT_LEAST_ONE} or 'auto'")
        for v in (0, -3, 2.5, True, "10", None)
    ],
    *[("n_iter_no_change", v, AT_LEAST_ONE) for v in (0, -3, 2.5, True, "10", None)],
    *[
        ("weight_decay", v, "a finite number of at least 0")
        for v in (-0.1, np.nan, np.inf, True, "0.1", None)
    ],
    *[("early_stopping", v, "True, False or 'auto'") for v in ("yes", 1, 0, None, 0.5)],
    *[("early_stopping", v, "True, False or 'auto'") for v in (np.ones(2), pd.NA)],
    *[
        (
            "scoring",
            v,
            "'loss', a name from sklearn.metrics.get_scorer_names(), a callable or "
            "None",
        )
        for v in (np.ones(2), pd.NA, ["r2"], {"r2"})
    ],
    *[
        (
            "random_state",
            v,
            "an integer from 0 to 2**32 - 1, a numpy.random.RandomState or None",
        )
        for v in (-1, 2**70, 1.5, "0", np.arange(2), pd.NA)
    ],
    *[
        ("validation_fraction", v, "a number between 0 and 1, both excluded")
        for v in (0, 1, 1.5, -0.1, np.nan, True, "0.1", None)
    ],
    *[
        ("max_time", v, "a number above 0 or None")
        for v in (0, -1.0, np.nan, "1h", True)
    ],
    *[("warm_start", v, "True or False") for v in (1, 0, "yes", None)],
    *[("verbose", v, "an integer of at least 0") for v in (-1, 0.5, "1", None)],
    *[
        ("callbacks", v, "a list of skorch callbacks or None")
        for v in ("print", 3, {"a": 1}, [3], [print], [("name",)], [(1, print)])
    ],
]


@pytest.mark.parametrize(("name", "value", "rule"), WRONG_VALUES)
def test_invalid_values_of_parameters_are_refused_in_fit(name, value, rule):
    model = StableNetRegressor(**{name: value})
    assert refusal(ValueError, model.fit, X, VALUES) == (
        f"The {name!r} parameter of StableNetRegressor must be {rule}, got {value!r}."
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", np.float32(0.01)),
        ("max_epochs", np.int64(1)),
        ("batch_size", np.int32(4)),
        ("early_stopping", np.bool_(True)),
        ("warm_start", np.bool_(False)),
        ("verbose", False),
        ("callbacks", ()),
        ("clip_norm", 1),
        ("clip_value", 2**70),
    ],
)
def test_numbers_and_booleans_of_numpy_are_accepted(name, value):
    regressor(**{name: value}).fit(X, VALUES)


GUARD_MESSAGES = {
    "clip_norm": (0, "clip_norm must be a number above 0 or None, got 0."),
    "clip_value": (-1, "clip_value must be a number above 0 or None, got -1."),
    "adaptive_clip of a number": (
        -1,
        "adaptive_clip must be above 0 and finite, got -1.",
    ),
    "adaptive_clip": (
        "agg",
        "Unknown adaptive_clip 'agg'. Did you mean 'agc'? Known names: 'agc', "
        "'quantile', 'zscore'.",
    ),
    "on_nonfinite": (
        "rescue",
        "on_nonfinite must be one of 'recover', 'skip', 'raise', got 'rescue'.",
    ),
    "max_recoveries": (-1, "max_recoveries must be an integer of at least 0, got -1."),
    "warmup": (
        1.5,
        "warmup as a fraction of all steps must be in [0, 1), got 1.5. Pass an int for "
        "a number of steps.",
    ),
}


@both
@pytest.mark.parametrize("name", GUARD_MESSAGES)
def test_parameters_of_the_guard_are_checked_in_fit(Estimator, y, name):
    value, message = GUARD_MESSAGES[name]
    assert (
        refusal(ValueError, Estimator(**{name.partition(" ")[0]: value}).fit, X, y)
        == message
    )


def test_an_unknown_parameter_is_refused_by_the_constructor():
    assert refusal(TypeError, StableNetClassifier, max_epoch=3) == (
        "StableNetClassifier has no parameter 'max_epoch'. Did you mean 'max_epochs'? "
        f"{PREFIXES}"
    )
    assert refusal(TypeError, StableNetRegressor, class_weight="balanced") == (
        f"StableNetRegressor has no parameter 'class_weight'. {PREFIXES}"
    )
    assert refusal(TypeError, StableNetRegressor, modul__width=3) == (
        f"StableNetRegressor has no parameter 'modul__width'. {PREFIXES}"
    )


def test_an_unknown_parameter_is_refused_by_set_params():
    assert refusal(ValueError, StableNetClassifier().set_params, learning=3) == (
        f"StableNetClassifier has no parameter 'learning'. {PREFIXES}"
    )
    assert refusal(ValueError, StableNetClassifier().set_params, batchsize=3) == (
        "StableNetClassifier has no parameter 'batchsize'. Did you mean 'batch_size'? "
        f"{PREFIXES}"
    )


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("learning_rate", "lr"),
        ("epochs", "max_epochs"),
        ("loss", "criterion"),
        ("hidden_layer_sizes", "module__width"),
    ],
)
def test_parameter_names_of_other_libraries_get_a_suggestion(name, suggested):
    assert refusal(TypeError, StableNetClassifier, **{name: 3}) == (
        f"StableNetClassifier has no parameter {name!r}. Did you mean {suggested!r}? "
        f"{PREFIXES}"
    )


def test_an_unknown_prefixed_parameter_is_refused_with_the_nearest_name():
    assert refusal(ValueError, classifier(module__widht=3).fit, X, LABELS) == (
        "StableNetClassifier got module__widht, but TabularMLP has no parameter "
        "'widht'. Did you mean 'width'? It has: 'n_features_in', 'n_outputs', 'width', "
        "'depth', 'dropout', 'activation', 'n_frequencies', 'frequency_range', "
        "'numeric_columns'."
    )
    assert refusal(
        ValueError, regressor(criterion="huber", criterion__deltas=3).fit, X, VALUES
    ) == (
        "StableNetRegressor got criterion__deltas, but HuberLoss has no parameter "
        "'deltas'. Did you mean 'delta'? It has: 'reduction', 'delta'."
    )
    accepted = inspect.signature(torch.optim.AdamW).parameters
    assert refusal(ValueError, regressor(optimizer__beta=3).fit, X, VALUES) == (
        "StableNetRegressor got optimizer__beta, but AdamW has no parameter 'beta'. "
        f"Did you mean 'betas'? It has: {', '.join(repr(name) for name in accepted)}."
    )


def test_parameters_for_an_instance_are_refused():
    model = classifier(module=nn.Linear(3, 2), module__bias=False)
    assert refusal(ValueError, model.fit, X, LABELS) == (
        "module is an instance of Linear, so module__bias cannot be applied. Pass the "
        "class."
    )
    model = classifier(criterion=nn.CrossEntropyLoss(), criterion__reduction="sum")
    assert refusal(ValueError, model.fit, X, LABELS) == (
        "criterion is an instance of CrossEntropyLoss, so criterion__reduction cannot "
        "be applied. Pass the class."
    )


def test_a_second_learning_rate_is_refused():
    # Training would use one learning rate and effective_lr_ would be the other.
    assert refusal(ValueError, classifier(optimizer__lr=3.0).fit, X, LABELS) == (
        "StableNetClassifier got optimizer__lr: the learning rate is its parameter lr."
    )


def test_a_hold_out_of_all_rows_is_refused():
    model = regressor(early_stopping=True, validation_fraction=0.9)
    assert refusal(ValueError, model.fit, X[:3], VALUES[:3]) == (
        "validation_fraction=0.9 holds out 3 of 3 rows, which leaves none to train on. "
        "Lower it, or set early_stopping=False."
    )
