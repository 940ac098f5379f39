"""Find out why a step of training is not finite, in a net of anyone's."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sknan._utils.compiled import original_of
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._causes import examine_step
from sknan.diagnosis._culprits import places_to_blame
from sknan.diagnosis._evidence import StepEvidence
from sknan.diagnosis._module_names import ModuleNames
from sknan.diagnosis._replay import replay
from sknan.diagnosis._report import NonFiniteReport
from sknan.optim._clipping import stable_grad_norm

__all__ = ["diagnose", "reproduce"]


def _as_tensors(data: Any, device: torch.device) -> Any:
    if hasattr(data, "to_numpy"):
        data = data.to_numpy()
    if isinstance(data, np.ndarray):
        if data.dtype == np.float64:
            with np.errstate(over="ignore"):
                data = data.astype(np.float32)
        data = torch.from_numpy(np.ascontiguousarray(data))
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, data)


class _Step:
    """One step of a copy of a network, which may be run again and again."""

    def __init__(
        self,
        modules: dict[str, Any],
        criteria: list[Any],
        forward: Any,
        loss: Any,
        batch: tuple[Any, Any],
        column_names: Any = None,
    ) -> None:
        self.modules = modules
        self.criteria = criteria
        self.forward = forward
        self.loss = loss
        self.inputs, self.target = batch
        self.n_rows = len(tree_leaves(self.inputs)[0])
        self.column_names = column_names
        self._states = [
            copy.deepcopy(module.state_dict())
            for module in modules.values()
            if isinstance(module, nn.Module)
        ]
        self._random_state = torch.random.get_rng_state()

    def run(self) -> tuple[Any, Tensor]:
        torch.random.set_rng_state(self._random_state)
        for _, parameter in self.named_parameters():
            parameter.grad = None
        outputs = self.forward(self.inputs)
        loss: Tensor = self.loss(outputs, self.target, self.inputs)
        return outputs, loss if loss.ndim == 0 else loss.sum()

    def forward_alone(self, inputs: Any) -> Any:
        """Output in evaluation mode, so that one row does not spoil the others."""
        parts = [m for m in self.modules.values() if isinstance(m, nn.Module)]
        modes = [part.training for part in parts]
        try:
            for part, state in zip(parts, self._states, strict=True):
                part.load_state_dict(state)  # the step has changed running statistics
                part.eval()
            return self.forward(inputs)
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.train(mode)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [
            pair
            for part in [*self.modules.values(), *self.criteria]
            if isinstance(part, nn.Module)
            for pair in part.named_parameters()
        ]

    def judge(self) -> NonFiniteReport | None:
        """Run it under observation, and say what is not finite."""
        names = ModuleNames(self.modules, self.criteria)
        failed = replay(self.run, names, (self.inputs, self.target), self.n_rows)
        error: Exception | None = None
        outputs: Any = None
        value = norm = float("nan")
        try:
            with torch.enable_grad():
                outputs, loss = self.run()
        except Exception as raised:  # as a decomposition of NaN raises
            if failed is None:
                raise
            error = raised
        else:
            value = float(loss.detach())
            if np.isfinite(value) and loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            grads = [p.grad for _, p in self.named_parameters() if p.grad is not None]
            norm = stable_grad_norm(grads) if grads else 0.0
            if failed is not None and failed.is_of_buffer:
                norm = float("nan")  # no gradient tells of it
        if failed is None and np.isfinite(value) and np.isfinite(norm):
            return None
        places: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        if failed is not None:
            batch = self.inputs, self.target
            places = places_to_blame(
                failed.phase,
                failed.rows,
                batch,
                outputs,
                self.forward_alone,
                self.loss,
            )
        evidence = StepEvidence(
            inputs=self.inputs,
            outputs=outputs,
            loss=value,
            gradient_norm=norm,
            named_parameters=self.named_parameters(),
            relative_distance=0.0,
            lr=0.0,
            epoch=0,
            batch=0,
            failed_operation=failed,
            error=error,
            rows=places[0],
            columns=places[1],
        )
        report = examine_step(evidence)
        names, columns = self.column_names, report.columns
        if names is not None:
            columns = tuple(str(names[int(column)]) for column in columns)
        return dataclasses.replace(report, rows_in="data", columns=columns)


def _copied(net: Any) -> Any:
    """A net of skorch's with networks and criteria of its own."""
    # skorch copies a net by pickling it, which a class made in a function refuses.
    twin = object.__new__(type(net))
    vars(twin).update(vars(net))
    for name in [*net._modules, *net._criteria]:
        vars(twin)[f"{name}_"] = copy.deepcopy(original_of(getattr(net, f"{name}_")))
    return twin


def _step_of_net(net: Any, X: Any, y: Any) -> _Step:
    """A step of an estimator of ours or a net of skorch's, copied."""
    names = getattr(net, "feature_names_in_", None)
    if hasattr(net, "net_"):
        inputs, target = net._as_batch(X, y)
        net = _copied(net.net_)
    elif hasattr(net, "module_"):
        device = torch.device(net.device)
        inputs, target = _as_tensors(X, device), _as_tensors(y, device)
        net = _copied(net)
    else:
        raise TypeError(
            "diagnose takes a module, a criterion, X and y, or an initialized net, X "
            f"and y, got {type(net).__name__}. Call initialize() or fit() first."
        )
    net._set_training(True)

    def loss(outputs: Any, target: Any, inputs: Any) -> Tensor:
        found: Tensor = net.get_loss(outputs, target, X=inputs, training=True)
        return found

    return _Step(
        {name: getattr(net, f"{name}_") for name in net._modules},
        [getattr(net, f"{name}_") for name in net._criteria],
        net.infer,
        loss,
        (inputs, target),
        names,
    )


def _step_of_module(module: nn.Module, criterion: Any, X: Any, y: Any) -> _Step:
    # A copy: what a forward pass changes in place must not be seen outside.
    module, criterion = copy.deepcopy((original_of(module), original_of(criterion)))
    first = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))
    batch = _as_tensors(X, first.device), _as_tensors(y, first.device)
    return _Step(
        {"module": module},
        [criterion],
        module,
        lambda outputs, target, inputs: criterion(outputs, target),
        batch,
    )


def diagnose(*args: Any) -> NonFiniteReport | None:
    """Run one step, forward and backward, and say what in it is not finite.

    ``diagnose(module, criterion, X, y)`` for any torch network and loss, or
    ``diagnose(net, X, y)`` for a fitted estimator of sknan, or a net of sknan or skorch
    that has its weights. Nothing is changed: weights, gradients, buffers and random
    states are as before.

    Parameters
    ----------
    *args : module, criterion, X, y, or net, X, y
        ``X`` and ``y`` are arrays, DataFrames, tensors, or nested tuples or dicts of
        tensors; float64 arrays become float32. ``criterion`` is called with output and
        target.

    Returns
    -------
    NonFiniteReport or None
        With rows of ``X`` and columns by number. None if loss and gradients are finite.

    Raises
    ------
    TypeError
        If the arguments are neither of the two, or the first is a class.
    NonFiniteDataError
        If ``X`` or ``y`` for an estimator holds NaN or infinities.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sknan.diagnosis import diagnose
    >>> class Log(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(2, 1)
    ...
    ...     def forward(self, x):
    ...         return torch.log(self.fc(x).relu() * 0)
    >>> report = diagnose(Log(), nn.MSELoss(), torch.ones(3, 2), torch.ones(3, 1))
    >>> report.phase, report.cause, report.operation
    ('forward', 'activation', 'aten.log')
    """
    if args and isinstance(args[0], type):
        raise TypeError(
            f"diagnose looks at a network, and got the class {args[0].__name__}. Pass "
            "an instance."
        )
    state = torch.random.get_rng_state()
    if len(args) == 4:
        step = _step_of_module(*args)
    elif len(args) == 3:
        step = _step_of_net(*args)
    else:
        raise TypeError(
            "diagnose takes (module, criterion, X, y) or (net, X, y), got "
            f"{len(args)} arguments."
        )
    try:
        return step.judge()
    finally:
        torch.random.set_rng_state(state)


def reproduce(
    report: NonFiniteReport, module: nn.Module, criterion: Any
) -> NonFiniteReport | None:
    """Run a failed step again from its capsule, and say what in it is not finite.

    Parameters
    ----------
    report : NonFiniteReport
        With a capsule, such as :meth:`NonFiniteReport.load` gives.
    module : nn.Module
        Of the same architecture; a copy of it gets the weights of the failure.
    criterion : callable
        The loss of that training. The weights of a module come from the capsule too.

    Returns
    -------
    NonFiniteReport or None
        Its rows are those of the batch. None if the step comes out finite.

    Raises
    ------
    ValueError
        If the report has no capsule.
    RuntimeError
        torch's own, if the weights do not fit the module.
    """
    capsule = report.capsule
    if capsule is None:
        raise ValueError(
            "The report holds no capsule: only the first report of a training and that "
            "of an error do, and a pickled one leaves it behind. Save it with "
            "report.save(path)."
        )
    module, criterion = copy.deepcopy((original_of(module), original_of(criterion)))
    module.load_state_dict(capsule.weights["module"])
    if isinstance(criterion, nn.Module) and "criterion" in capsule.weights:
        criterion.load_state_dict(capsule.weights["criterion"])
    module.train(capsule.is_training)
    state = torch.random.get_rng_state()
    torch.random.set_rng_state(capsule.random_state)
    try:
        step = _step_of_module(module, criterion, capsule.inputs, capsule.target)
        found = step.judge()
        return found and dataclasses.replace(found, rows_in="batch")
    finally:
        torch.random.set_rng_state(state)
