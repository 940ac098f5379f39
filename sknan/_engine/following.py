"""Notification of the listeners of a stack's members, and what they change.

Listeners are callbacks that see whole epochs. They find the state of the member in its
net. The stack goes on with the numbers that they leave there: weights, buffers,
moments, learning rate and weight decay. If they change anything else, such as which
weights are trained, the member leaves the stack for the loop of its net.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sknan._engine.code_state import code_state
from sknan._engine.member import Member
from sknan._engine.network_state import NetworkState, read_state
from sknan._engine.optimizer_step import optimizer_key
from sknan._engine.plan import RestOfTraining
from sknan._engine.recovery import recovery_at_present
from sknan._engine.stack_state import StackState
from sknan._engine.table_net import TableNet
from sknan._utils.tree import tree_leaves
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets._dropout import is_dropout
from sknan.nets._rates import refuse_invalid_rates


def notify_listeners(training: StackState, method_name: str) -> None:
    """Notify the listeners of all members between two epochs, and take over changes.

    Before an epoch, members that do not go on in the stack are removed.

    Raises
    ------
    KeyboardInterrupt
        If the user has interrupted one of several trainings, to end all of them.
    """
    for k, member in enumerate(training.members):
        if member.is_followed:
            _notify_member(training, k, method_name)
        if member.is_interrupted and len(training.members) > 1:
            raise KeyboardInterrupt
    if method_name != "on_epoch_end":
        training.finished += [m for m in training.members if m.rest is not None]
        goes_on = [m.error is None and m.rest is None for m in training.members]
        training.keep(np.flatnonzero(goes_on))


def _notify_member(training: StackState, k: int, method_name: str) -> None:
    member, net = training.members[k], training.members[k].net
    before, settings = training.stack.state_of(k), _settings_of(net)
    numbers = _numbers_of(member, before)
    member.notify(method_name, before)
    if member.error is not None or not net.callbacks:
        return
    if method_name == "on_epoch_begin":
        try:
            refuse_invalid_rates(net, 1)
        except NonFiniteTrainingError as error:
            member.error = error
            return
    if net._average_ is not None:
        net._average_.hide()
    if _settings_of(net) != settings:
        member.rest = _rest_of_training(training, k)
        return
    state = read_state(net)
    after = _numbers_of(member, state)
    if all(map(torch.equal, after, numbers)) and len(after) == len(numbers):
        return
    training.stack.put_state(k, state)
    training.stack.prepare_steps()
    training.stack.decays[k] = member.group["weight_decay"]
    training.ledger.learning_rates.base[k] = float(member.group["lr"])


def _numbers_of(member: Member, state: NetworkState) -> list[torch.Tensor]:
    """Return everything that the stack takes over from a net."""
    group = member.group
    rates = [float(group["lr"]), float(group["weight_decay"]), float(state.n_steps)]
    return [torch.tensor(rates, dtype=torch.float64), *tree_leaves(tuple(state[:3]))]


def _settings_of(net: TableNet) -> list[Any]:
    """Return what a stack does not take over from a net, in a form to compare."""
    module, parameters = net.module_, list(net.module_.parameters())
    dropouts = [part.p for part in module.modules() if is_dropout(part)]
    return [
        optimizer_key(net.optimizer_),
        [id(part) for part in (module, net.criterion_, net.optimizer_, *parameters)],
        [(p.requires_grad, len(p._backward_hooks or ())) for p in parameters],
        code_state(module, net.criterion_),
        dropouts,
        net.clip_norm,
        net.clip_value,
    ]


def _rest_of_training(training: StackState, k: int) -> RestOfTraining:
    """Return the rest of the training of a member, for the loop of its net."""
    member, net = training.members[k], training.members[k].net
    n_done = len(member.history)
    history = type(net.history)(net.history.to_list()[:n_done])
    rest = RestOfTraining(n_done, None, training.ledger.learning_rates.adaptive.get(k))
    if n_done:
        training.stack.put_state(k, read_state(net))
        rest.state = recovery_at_present(training, k).training.state_dict()
    net.history_ = history
    return rest
