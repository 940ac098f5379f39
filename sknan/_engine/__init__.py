"""Training of many networks of one architecture as one network.

A stack holds the weights of K networks as tensors with K along the first axis, so that
one call of a kernel serves all of them. Each network is a *member* of the stack. K may
be 1. In the order in which a training passes through them, the modules are:

``plan``
    ``Trainable``, the contract with the estimators; ``TrainingRows`` and
    ``TrainingPlan``, the prepared training of one estimator.
``table_net``
    ``TableNet``, the guarded net of an estimator. It predicts, and its own loop trains
    where single steps must be seen or changed.
``prediction``
    Targets and predictions of a net in the terms of its estimator, for callbacks.
``listeners``
    Listeners for the epochs of a training: progress bar, scikit-learn's callbacks.
``jobs``
    ``train_together``, which makes the plans of many estimators and groups them.
``fit``
    ``train_stack``, and ``train`` for one plan: as a stack of one if it can be.
``grouping``
    Keys of plans that may share a stack; ``module_key`` for modules of one's own, with
    ``code_state`` for what their code reads, and ``callbacks`` for the callbacks that a
    stack can serve.
``training``
    ``StackTraining``, the loop over epochs and batches of a stack.
``member``
    The part of a stacked training that each network has for itself: its rows, history,
    best epoch and result.
``following``
    Notification of callbacks between epochs, and what they change in a stack.
``state``
    Weights, gradients and moments of all members, and the steps on them;
    ``stack_rows`` and ``network_state`` hold the state of a stack and of one network.
``passes``
    Forward and backward pass of all members: ``chain`` with explicit passes of known
    layers and ``losses`` with explicit gradients, or ``module_pass`` for other modules,
    whose operations ``recording`` records once and runs again. ``products`` makes
    operations of a member independent of the number of members.
``optimizer_step``
    Steps of Adam and its variants, SGD, RMSprop and Adagrad for all members.
``ledger``
    Losses, gradient norms, clipping (``clipping``) and learning rates
    (``learning_rates``) of all steps. It decides which members may have failed.
``recovery``
    Recovery of the members that have failed, by the guard of their own net;
    ``verified`` holds the states to roll back to, and ``rate_trials`` searches for
    lower learning rates.
``range_test``
    Short trainings at many learning rates, and the suggestion that follows from them.

The steps of a span of batches are judged together. A member that may have failed
returns to its state before the span and takes these steps again, with a check of each.
The guard of its net explains and recovers the step that fails, and the member continues
in the stack.
"""
