"""Diagnosis of one training step of any torch network or skorch net."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sknan._utils.compiled import original_of
from sknan._utils.outside import is_of_environment, unless
from sknan._utils.random_state import kept_random_states
from sknan._utils.settings import usual_settings
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._causes import examine_loss, examine_step
from sknan.diagnosis._culprits import Trials, places_to_blame
from sknan.diagnosis._evidence import StepEvidence
from sknan.diagnosis._raised import (
    LOSS_IS_DETACHED,
    LOSS_IS_NO_NUMBER,
    ValueErrors,
    loss_of_type,
)
from sknan.diagnosis._replay import ModuleNames, replay
from sknan.diagnosis._report import NonFiniteReport
from sknan.diagnosis._value_trials import (
    depends_on_values,
    harmless,
    harmless_outputs,
    rows_that_raise,
)
from sknan.optim._clipping import stable_grad_norm


def _as_tensors(data: Any, device: torch.device) -> Any:
    """Return arrays and DataFrames, which may be nested, as tensors on the device."""

    def converted(leaf: Any) -> Any:
        if hasattr(leaf, "to_numpy"):
            leaf = leaf.to_numpy()
        if isinstance(leaf, np.ndarray):
            if leaf.dtype == np.float64:
                with np.errstate(over="ignore"):
                    leaf = leaf.astype(np.float32)
            leaf = torch.from_numpy(np.ascontiguousarray(leaf))
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return tree_map(converted, data)


@dataclass
class _Step:
    """A training step of a copy of a network, which can be run any number of times.

    ``forward`` is a function of the inputs, ``loss`` one of outputs, target and inputs.
    """

    modules: dict[str, Any]
    criteria: list[Any]
    forward: Callable[[Any], Any]
    loss: Callable[[Any, Any, Any], Tensor]
    inputs: Any
    target: Any
    column_names: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        self._networks = [m for m in self.modules.values() if isinstance(m, nn.Module)]
        self._states = [copy.deepcopy(part.state_dict()) for part in self._networks]
        self._random_state = torch.random.get_rng_state()

    def run(self) -> tuple[Any, Tensor]:
        """Return outputs and loss, from the same random state each time.

        A loss of several values counts as their sum.
        """
        outputs, loss = self._losses()
        return outputs, loss if loss.ndim == 0 else loss.sum()

    def _losses(self) -> tuple[Any, Tensor]:
        torch.random.set_rng_state(self._random_state)
        for _, parameter in self.named_parameters():
            parameter.grad = None
        outputs = self.forward(self.inputs)
        loss = self.loss(outputs, self.target, self.inputs)
        if not isinstance(loss, Tensor):
            raise TypeError(loss_of_type(type(loss).__name__))
        if loss.is_complex():
            raise ValueError(LOSS_IS_NO_NUMBER)
        return outputs, loss

    def forward_alone(self, inputs: Any) -> Any:
        """Return the output in evaluation mode, in which no row affects the others."""
        modes = [part.training for part in self._networks]
        try:
            for part, state in zip(self._networks, self._states, strict=True):
                part.load_state_dict(state)  # the step has changed running statistics
                part.eval()
            return self.forward(inputs)
        finally:
            for part, mode in zip(self._networks, modes, strict=True):
                part.train(mode)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of all networks and criteria, with their names."""
        return [
            pair
            for part in [*self.modules.values(), *self.criteria]
            if isinstance(part, nn.Module)
            for pair in part.named_parameters()
        ]

    def examine(self) -> NonFiniteReport | None:
        """Run the step under observation; return a report if it is not finite."""
        batch, n_rows = (self.inputs, self.target), len(tree_leaves(self.inputs)[0])
        names = ModuleNames(self.modules, self.criteria)
        failed = replay(self.run, names, batch, n_rows)
        evidence = dataclasses.replace(self._evidence(), failed_operation=failed)
        if evidence.error is not None and (
            failed is None or (failed.has_raised and not self._depends_on_values())
        ):
            raise evidence.error
        is_masked = failed is None or failed.phase == "backward" or failed.has_raised
        if evidence.is_finite and is_masked:
            self._check_backward()
            return None  # a later operation may give such an entry no weight
        of_loss = next(filter(None, map(examine_loss, self.criteria)), None)
        if of_loss is not None:
            return self._in_data(of_loss)
        if failed is not None:
            if failed.has_raised and not failed.rows:
                rows = rows_that_raise(self._run_on, batch)
                failed = dataclasses.replace(failed, rows=rows)
            if failed.is_only_in_buffer:  # the gradients do not depend on the buffer
                evidence = dataclasses.replace(evidence, gradient_norm=math.nan)
            trials = Trials(
                failed.phase,
                self.forward_alone,
                self.loss,
                [p for _, p in self.named_parameters()],
            )
            places = places_to_blame(failed, batch, evidence.outputs, trials)
            evidence = dataclasses.replace(evidence, places=places)
        return self._in_data(examine_step(evidence))

    def _check_backward(self) -> None:
        """Refuse a finite loss that has no gradient."""
        with torch.enable_grad():
            _, loss = self._losses()
        if loss.numel() != 1:
            raise ValueError(LOSS_IS_NO_NUMBER)
        if not loss.requires_grad and any(
            p.requires_grad for _, p in self.named_parameters()
        ):
            raise ValueError(LOSS_IS_DETACHED)

    def _run_on(self, batch: tuple[Any, Any]) -> None:
        """Run the step on another batch."""
        with torch.enable_grad():
            _, loss = dataclasses.replace(self, inputs=batch[0], target=batch[1]).run()
            loss.backward()  # type: ignore[no-untyped-call]

    def _depends_on_values(self) -> bool:
        """Whether a step that raises passes with other rows, targets or outputs."""

        def with_harmless_outputs() -> None:
            with torch.enable_grad():
                outputs = harmless_outputs(self.forward(self.inputs))
                loss = self.loss(outputs, harmless(self.target), self.inputs)
                loss.sum().backward()  # type: ignore[no-untyped-call]

        batch = self.inputs, self.target
        return depends_on_values(self._run_on, batch, [with_harmless_outputs])

    def _evidence(self) -> StepEvidence:
        """Run the step, and return what is known without a replay."""
        outputs, loss_value, norm = None, math.nan, math.nan
        with ValueErrors() as caught, torch.enable_grad():
            outputs, loss = self.run()
        if caught.error is None:
            loss_value = float(loss.detach())
            if math.isfinite(loss_value) and loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            grads = [p.grad for _, p in self.named_parameters() if p.grad is not None]
            norm = stable_grad_norm(grads) if grads else 0.0
        return StepEvidence(
            inputs=self.inputs,
            outputs=outputs,
            loss=loss_value,
            gradient_norm=norm,
            named_parameters=self.named_parameters(),
            error=caught.error,
        )

    def _in_data(self, report: NonFiniteReport) -> NonFiniteReport:
        """Return the report with rows of the data and names of columns."""
        columns = report.columns
        if self.column_names is not None:
            columns = tuple(str(self.column_names[int(i)]) for i in columns)
        return dataclasses.replace(report, rows_in="data", columns=columns)


def _copy_of(parts: Any) -> Any:
    """Return a deep copy of networks, with the hooks on gradients of their weights."""
    copies = copy.deepcopy(parts)
    for part, twin in zip(parts, copies, strict=True):
        if isinstance(part, nn.Module):
            for weight, copied in zip(
                part.parameters(), twin.parameters(), strict=True
            ):
                for hook in (weight._backward_hooks or {}).values():
                    copied.register_hook(hook)
                for hook in (weight._post_accumulate_grad_hooks or {}).values():
                    copied.register_post_accumulate_grad_hook(_if_it_can(hook))
    return copies


def _if_it_can(hook: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """Return a hook that calls another one, and leaves out one that needs the original.

    Such a hook steps the optimizer of a weight, and does not know a copy of the weight.
    """

    def hook_of_copy(weight: Tensor) -> None:
        with contextlib.suppress(KeyError, AttributeError):
            hook(weight)

    return hook_of_copy


def _copied(net: Any) -> Any:
    """Return a copy of a skorch net with copies of its networks and criteria."""
    # skorch copies a net by pickling, which fails for a class defined in a function.
    twin = object.__new__(type(net))
    vars(twin).update(vars(net))
    for name in [*net._modules, *net._criteria]:
        (part,) = _copy_of([original_of(getattr(net, f"{name}_"))])
        vars(twin)[f"{name}_"] = part
    return twin


def _step_of_net(net: Any, X: Any, y: Any) -> _Step:
    """Return a step of a copy of an estimator of sknan or a net of skorch."""
    column_names = getattr(net, "feature_names_in_", None)
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
        result: Tensor = net.get_loss(outputs, target, X=inputs, training=True)
        return result

    return _Step(
        {name: getattr(net, f"{name}_") for name in net._modules},
        [getattr(net, f"{name}_") for name in net._criteria],
        net.infer,
        loss,
        inputs,
        target,
        column_names,
    )


def _step_of_module(module: nn.Module, criterion: Any, X: Any, y: Any) -> _Step:
    # A copy, because a forward pass may change the module in place.
    module, criterion = _copy_of((original_of(module), original_of(criterion)))
    first = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))

    def forward(inputs: Any) -> Any:
        call: Callable[..., Any] = module  # by the names of the inputs, as in skorch
        if isinstance(inputs, Mapping) and _accepts(module, **inputs):
            return call(**inputs)
        is_several = isinstance(inputs, tuple) and not _accepts(module, inputs)
        return call(*inputs) if is_several else call(inputs)

    return _Step(
        {"module": module},
        [criterion],
        forward,
        lambda outputs, target, inputs: criterion(outputs, target),
        _as_tensors(X, first.device),
        _as_tensors(y, first.device),
    )


def _accepts(module: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """Whether ``forward`` can be called with these arguments."""
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def diagnose(*args: Any) -> NonFiniteReport | None:
    """Run one training step, forward and backward, and report what is not finite.

    Call ``diagnose(module, criterion, X, y)`` for any torch network and loss, or
    ``diagnose(net, X, y)`` for a fitted estimator of sknan or an initialized net of
    sknan or skorch. Weights, gradients, buffers and random states are left unchanged:
    the step is one of a copy, with the hooks on modules and gradients.

    Parameters
    ----------
    *args : module, criterion, X, y, or net, X, y
        Network, loss and data of the step. ``X`` and ``y`` are arrays, DataFrames,
        tensors, or nested tuples or dicts of them; float64 arrays are converted to
        float32. A dict is passed by keyword if ``forward`` has these parameters, and a
        tuple in parts if ``forward`` requires several.
        ``criterion`` is called with output and target.

    Returns
    -------
    NonFiniteReport or None
        Report with rows of ``X``, and with columns by name if the estimator knows
        their names, else by number. None if loss and gradients are finite.

    Raises
    ------
    TypeError
        If the arguments have neither form, the first one is a class, or the loss is no
        tensor.
    ValueError
        If the loss is finite and cannot be differentiated, since it has several values
        or does not depend on any weight.
    NonFiniteDataError
        If ``X`` or ``y`` of an estimator contains NaN or infinity.

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
            f"diagnose takes a network, got the class {args[0].__name__}. Pass an "
            "instance."
        )
    if len(args) not in (3, 4):
        raise TypeError(
            "diagnose takes (module, criterion, X, y) or (net, X, y), got "
            f"{len(args)} arguments."
        )
    keeps = len(args) == 4  # precision is a property of the user's own loop
    with usual_settings(any_dtype=True, any_precision=keeps), kept_random_states():
        step = _step_of_module(*args) if len(args) == 4 else _step_of_net(*args)
        return step.examine()


def reproduce(
    report: NonFiniteReport, module: nn.Module, criterion: Any
) -> NonFiniteReport | None:
    """Run a failed step again from its capsule, and report what is not finite.

    Parameters
    ----------
    report : NonFiniteReport
        Report with a capsule, such as :meth:`NonFiniteReport.load` returns.
    module : nn.Module
        Network of the same architecture. The weights of the failure are loaded into a
        copy of it.
    criterion : callable
        Loss of the failed training. If it is a module, its weights come from the
        capsule too.

    Returns
    -------
    NonFiniteReport or None
        Report with rows of the batch. None if the step is finite.

    Raises
    ------
    ValueError
        If the report has no capsule, or its capsule cannot be run with this module and
        criterion.
    """
    capsule = report.capsule
    if capsule is None:
        raise ValueError(
            "The report has no capsule. Only the first report of a training and the "
            "report of an error have one, and pickling removes it. Save the report "
            "with report.save(path) to keep the capsule."
        )
    module, criterion = _copy_of((original_of(module), original_of(criterion)))
    try:
        module.load_state_dict(capsule.weights["module"])
        if isinstance(criterion, nn.Module) and "criterion" in capsule.weights:
            criterion.load_state_dict(capsule.weights["criterion"])
        module.train(capsule.is_training)
        with usual_settings(any_dtype=True, any_precision=True), kept_random_states():
            torch.random.set_rng_state(capsule.random_state)
            step = _step_of_module(module, criterion, capsule.inputs, capsule.target)
            found = step.examine()
    except unless(is_of_environment, Exception) as error:
        raise ValueError(
            "The capsule cannot be run with this module and criterion: "
            f"{type(error).__name__}: {error}. Pass the module and the criterion of "
            "the failed training, or get an intact copy of the report."
        ) from error
    return found and dataclasses.replace(found, rows_in="batch")
