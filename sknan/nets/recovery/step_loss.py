"""Loss of a batch by the training step of a net, without a step of the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from skorch.dataset import unpack_data
from torch import Tensor

from sknan.diagnosis._backward import CapturedBackward


def loss_of(net: Any, batch: Any, fit_params: dict[str, Any]) -> tuple[Any, Tensor]:
    """Return output and loss of a batch in training mode.

    A ``train_step`` or ``train_step_single`` of the user's own is called, with
    ``backward`` and the steps of the optimizers left out.

    Parameters
    ----------
    net : skorch net with GuardMixin
        Initialized net.
    batch : tuple
        Inputs and targets.
    fit_params : dict
        Parameters of the module's ``forward``.

    Returns
    -------
    outputs : object
    loss : Tensor of shape ()
        Of several losses the first one that is not finite, else their sum.
    """
    own_step = net._own_step()
    if own_step is None:
        inputs, target = unpack_data(batch)
        net._set_training(True)
        outputs = net.infer(inputs, **fit_params)
        return outputs, net.get_loss(outputs, target, X=inputs, training=True)
    losses: list[Tensor] = []

    def capture(loss: Tensor) -> None:
        losses.append(loss)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    with torch.enable_grad(), _kept_weights(net), CapturedBackward(capture):
        step = own_step(batch, **fit_params)
    total: Any = sum(losses) if losses else step["loss"]
    nonfinite = (loss for loss in losses if not bool(torch.isfinite(loss).all()))
    return step.get("y_pred"), next(nonfinite, total)


@contextlib.contextmanager
def _kept_weights(net: Any) -> Iterator[None]:
    """Let a step of the user's own leave weights and gradients as they are."""
    weights = [p for module in net._all_modules() for p in module.parameters()]
    kept = [(p, p.grad, p.detach().clone(), p._version) for p in weights]
    net._zero_grad_optimizer()
    try:
        with _without_steps(net._all_optimizers()):
            yield
    finally:
        for parameter, grad, value, version in kept:
            parameter.grad = grad
            if parameter._version != version:  # written without an optimizer
                parameter.data.copy_(value)


@contextlib.contextmanager
def _without_steps(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Let the steps of optimizers only evaluate their closure inside the block."""

    def evaluate(closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is None else closure()

    kept = [vars(optimizer).get("step") for optimizer in optimizers]
    for optimizer in optimizers:
        vars(optimizer)["step"] = evaluate
    try:
        yield
    finally:
        for optimizer, step in zip(optimizers, kept, strict=True):
            del vars(optimizer)["step"]
            if step is not None:  # of a scheduler that counts the steps
                vars(optimizer)["step"] = step
