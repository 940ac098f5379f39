"""Training of many networks of one architecture as one network.

A stack holds the weights of K networks as tensors with K along the first axis, so that
one call of a kernel serves all of them. Each network is a *member* of the stack. K may
be 1. In the order in which a training passes through them, the modules are:

``plan``
    ``Trainable``, the contract with the estimators; ``TrainingRows`` and
    ``TrainingPlan``, the prepared training of one estimator.
``table_net``
    ``TableNet``, the guarded net of an estimator, which trains by itself and predicts.
``listeners``
    Listeners for the epochs of a single training: progress bar, scikit-learn's
    callbacks.
``jobs``
    ``train_together``, which makes the plans of many estimators, groups them into
    stacks, and trains separately those that cannot be stacked or have failed.
``training``
    ``train_stack``, the loop over epochs and batches of a stack.
``member``
    The part of a stacked training that each network has for itself: its rows, history,
    best epoch and result.
``state``
    Weights, gradients and moments of all members, and the steps on them.
``passes``
    Forward and backward pass of all members: ``chain`` with explicit passes of known
    layers and ``losses`` with explicit gradients, or ``module_pass`` for other modules,
    whose operations ``recording`` records once and runs again.
``optimizer_step``
    Steps of Adam, AdamW and SGD for all members.
``ledger``
    Losses, gradient norms, clipping and learning rates of all steps. It decides which
    members may have failed.
``range_test``
    Short trainings at many learning rates, and the suggestion that follows from them.

A member whose step may have failed is removed from the stack. ``jobs`` then trains it
again from its start with ``TableNet``, whose guard explains the failure and recovers.
"""
