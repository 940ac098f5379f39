"""Base class of StableNetClassifier and StableNetRegressor.

An estimator trains a guarded skorch net and is not a net itself. The contracts of
scikit-learn and skorch differ: skorch sets state in ``__init__``, predicts class
numbers instead of labels, and does not validate its input.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import estimator_html_repr
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sknan._engine.fit import train
from sknan._engine.fitted_network import FittedNetwork
from sknan._engine.listeners import EpochTasks
from sknan._engine.plan import TrainingPlan, TrainingRows
from sknan._engine.prediction import TargetCoding
from sknan._engine.range_test import USUAL_RATE, TimeIsUp, range_test
from sknan._engine.scoring import ValidationScore
from sknan._engine.table_net import TableNet
from sknan._utils.encoding import EncodedStateMixin
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.random_state import random_generator, random_states, seeded
from sknan._utils.settings import usual_settings
from sknan._utils.threads import keeps_threads, threads_for
from sknan._utils.warn import warn
from sknan.estimators._components import resolve_device
from sknan.estimators._input import network_input, scale_weights, shared_tensor
from sknan.estimators._network_output import check_finite_output, trial_output
from sknan.estimators._parameters import is_auto
from sknan.estimators._training_rows import TrainingRowsMixin
from sknan.estimators._validation_split import ValidationFold
from sknan.nets._batching import TensorTable
from sknan.nets._best_weights import BestWeights
from sknan.nets._time_limit import TimeLimit
from sknan.nets._training_facts import diagram_block, summary_as_html
from sknan.preprocessing._stored_table import stored_chunks

# Of fewer rows, a tenth is too small a sample for the choice of an epoch.
_MIN_ROWS_TO_STOP_EARLY = 500

# Parameters that a plan depends on, but no parameter of its net.
_PARAMS_OF_PLAN = (
    "early_stopping",
    "n_iter_no_change",
    "random_state",
    "scoring",
    "validation_fraction",
    "validation_split",
)


class TimeLimitWarning(ConvergenceWarning):
    """Warning that a time limit has ended a training."""


class StableNetBase(
    VersionedPickleMixin, EncodedStateMixin, CallbackSupportMixin, TrainingRowsMixin
):
    """Guarded network as a scikit-learn estimator.

    The engine trains an estimator through the protocol
    :class:`sknan._engine.plan.Trainable`, which this class implements: ``_fit`` runs
    all of ``fit``; ``_check_parameters``, ``_training_rows``, ``_plan`` and ``_finish``
    are its steps, so that the engine can train the networks of several estimators
    together.

    A subclass also defines how targets are converted back (``_coding``) and compared
    with the output (``_match_target``).
    """

    _fitted: FittedNetwork
    _next_seed: int

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_fitted")

    @property
    def net_(self) -> TableNet:
        """Fitted network as a skorch net, which is built at each access.

        Nets of several calls have one module, and histories of their own.
        """
        if not hasattr(self, "_fitted"):
            raise AttributeError(f"{type(self).__name__} has no net_ before fit.")
        net = self._rebuilt_net()
        self._describe_data(net)
        return net

    def _describe_data(self, net: TableNet) -> None:
        net.coding_, net.scaling_ = self._coding, self._scaling
        net.column_names_ = getattr(self, "feature_names_in_", None)

    @property
    def _sk_visual_block_(self) -> Callable[[], Any]:
        """Block in scikit-learn's diagrams; before ``fit``, scikit-learn draws it."""
        if not hasattr(self, "_fitted"):
            raise AttributeError("_sk_visual_block_")
        return functools.partial(diagram_block, self)

    def _html_repr(self) -> str:
        """Return scikit-learn's diagram, followed by a summary of the training."""
        diagram: str = estimator_html_repr(self)
        return diagram + (summary_as_html(self) if hasattr(self, "_fitted") else "")

    @property
    def _coding(self) -> TargetCoding:
        """Conversion between ``y`` and the targets of the network."""
        raise NotImplementedError

    @property
    def _needs_network(self) -> bool:
        """Whether predictions depend on the network, so that it is trained."""
        return True

    # -- training ------------------------------------------------------------------

    def _set_learning_rate(
        self, rows: TrainingRows, seed: int, *, continues: bool
    ) -> None:
        """Set ``lr_``, and ``learning_rate_range_`` if the learning rate was found."""
        if not is_auto(self.lr):
            self.lr_ = float(self.lr)
            self.learning_rate_range_ = None
        elif not continues:  # a range test applies to an untrained network
            max_time = None if rows.is_partial else self.max_time
            verbose = self.verbose == 1
            try:
                found = range_test(self, rows, seed, verbose=verbose, max_time=max_time)
            except TimeIsUp:
                self.learning_rate_range_, self.lr_ = None, USUAL_RATE
            else:
                self.learning_rate_range_, self.lr_ = found, found.suggestion

    @usual_settings()
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        groups: Any = None,
    ) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like, DataFrame or chunks of shape (n_samples, n_features)
            Features: finite numbers within float32. A custom module may take more
            dimensions. Chunks are the result of
            :func:`~sknan.preprocessing.iter_chunks` or an Arrow dataset; ``y`` may then
            be the name of a column, or belong to the chunks.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            For a regressor, finite numbers. For a classifier, labels of at least two
            classes: numbers, strings or booleans; for several labels per row, 0 and 1
            in a column for each label, which may be sparse.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.
        X_val : array-like, DataFrame or chunks, (n_val, n_features), default=None
            Rows for early stopping, instead of a part of ``X``. In a ``Pipeline`` they
            are transformed as ``X`` is with ``transform_input=["X_val"]``.
        y_val : array-like of shape (n_val,), default=None
            Targets of ``X_val``, unless they belong to its chunks.
        sample_weight_val : array-like of shape (n_val,) or None, default=None
            Non-negative weights of the rows of ``X_val``.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of each row, such as a patient or a session. All rows of a group are
            held out together, for early stopping and for ``lr="auto"``.

        Returns
        -------
        self
        """
        self._fit(
            X,
            y,
            sample_weight,
            X_val=X_val,
            y_val=y_val,
            sample_weight_val=sample_weight_val,
            groups=groups,
        )
        return self

    @with_callbacks  # type: ignore[untyped-decorator]
    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        fold: ValidationFold | None = None,
        **data: Any,
    ) -> None:
        """Run all of ``fit`` and notify scikit-learn's callbacks."""
        self._check_parameters()
        X, y, chunk = stored_chunks(X, y)
        data = {"chunk": chunk, **data}
        tasks = EpochTasks()
        tasks.begin(self, X, y, sample_weight)
        plan = self._plan(self._training_rows(X, y, sample_weight, **data), fold)
        train(plan, tasks if tasks.has_listeners else None)
        self._finish(plan)
        tasks.end()

    def _partial_fit(self, X: Any, y: Any, *args: Any, **kwargs: Any) -> None:
        """Run all of ``partial_fit``."""
        X, y, _ = stored_chunks(X, y)
        rows = self._training_rows(X, y, *args, is_partial=True, **kwargs)
        plan = self._plan(rows)
        train(plan)
        self._finish(plan)

    def _plan(
        self,
        rows: TrainingRows,
        fold: ValidationFold | None = None,
        table_of: TrainingPlan | None = None,
    ) -> TrainingPlan:
        """Return the plan of a training; see :class:`sknan._engine.plan.Trainable`.

        ``fold`` is used if there are enough rows for one fold.
        """
        continues = self._continues(rows.is_partial)
        state = self._next_seed if continues else self.random_state
        rng = random_generator(type(self).__name__, state)
        seed, split_seed, self._next_seed = (
            int(rng.randint(np.iinfo(np.int32).max)) for _ in range(3)
        )
        if rows.hold_out is not None:
            rows = rows._replace(hold_out=rows.hold_out.with_fold(fold))
        start = time.monotonic()
        self._set_learning_rate(rows, seed, continues=continues)
        search_seconds = time.monotonic() - start
        rows = rows._replace(weights=scale_weights(rows.weights))
        per_row = rows.weights is not None
        device = self._fitted.device if continues else resolve_device(self.device)
        with seeded(seed, device):
            if continues:
                net = self._continued_net(per_row=per_row)
            else:
                net = self._build_net(rows, per_row=per_row)
            net.max_epochs = self.most_epochs(rows.n_train)
            if not self._needs_network:
                net.set_params(lr=0.0)
            self._describe_data(net)
            # The split is a function of the other ones.
            chosen = {name: getattr(self, name) for name in _PARAMS_OF_PLAN}
            net.estimator_params_ = {"train_split": None, **chosen}
            if table_of is None:
                table = self._table(net, rows)
            else:
                table = table_of.table
                net.flops_per_row_ = table_of.net.flops_per_row_
            states = random_states(device)
        best = score = None
        if self._stops_early(rows):
            best = BestWeights(self.n_iter_no_change)
            if self.scoring != "loss":
                score = ValidationScore(self)
                best = BestWeights(self.n_iter_no_change, score.monitor, True)
        time_limit = None
        if self.max_time is not None and not rows.is_partial:
            time_limit = TimeLimit(self.max_time - search_seconds)
        return TrainingPlan(
            net=net,
            table=table,
            best=best,
            score=score,
            time_limit=time_limit,
            split=functools.lru_cache(maxsize=1)(rows.split),
            split_seed=split_seed,
            random_states=states,
            num_threads=self.num_threads,
            is_partial=rows.is_partial,
            keeps_moments=self._needs_network and (rows.is_partial or self.warm_start),
            positions=None if fold is None else rows.positions,
        )

    def _stops_early(self, rows: TrainingRows) -> bool:
        if rows.is_partial:
            return False
        if self.early_stopping == "auto":
            is_given = rows.hold_out is not None and (
                self.validation_split is not None or rows.hold_out.n_valid > 0
            )
            return is_given or len(rows.X) >= _MIN_ROWS_TO_STOP_EARLY
        return bool(self.early_stopping)

    def _table(self, net: TableNet, rows: TrainingRows) -> TensorTable:
        """Return the rows as tensors, after a trial of the module on a few of them."""
        targets: Any = self._shape_target(net, rows.X, rows.y).to(net.device)
        if rows.weights is not None:
            weights = torch.from_numpy(rows.weights).float().to(net.device)
            targets = (targets, weights)
        return TensorTable(
            shared_tensor(rows.X).to(net.device),
            targets,
            torch.from_numpy(rows.numbers),
            getattr(self, "feature_names_in_", None),
        )

    def _shape_target(self, net: TableNet, X: np.ndarray, y: np.ndarray) -> Tensor:
        """Return ``y`` in the shape that the criterion compares with the output."""
        return self._match_target(net.criterion_, trial_output(net, X), y)

    def _match_target(
        self, criterion: nn.Module, output: Tensor, y: np.ndarray
    ) -> Tensor:
        """Return ``y`` in the shape of the output, which is checked first."""
        raise NotImplementedError

    def _finish(self, plan: TrainingPlan) -> None:
        """Check that the trained net is finite, and set the fitted attributes."""
        net, best, score = plan.net, plan.best, plan.score
        net.callbacks_ = [c for c in net.callbacks_ if c[1] is not score]
        is_failed = best is not None and best.best_epoch_ is None
        # Ctrl-C may come before the last score, or before it is compared.
        last = (net.history or [{}])[-1]
        if is_failed and score and not np.isfinite(last.get(score.monitor, 0.0)):
            score.refuse(len(net.history), len(plan.split(plan.split_seed)[1]))
        check_finite_output(net, plan.table)
        net._zero_grad_optimizer(set_to_none=True)
        self._fitted = net.fitted(keeps_moments=plan.keeps_moments)
        self._params_of_fitted = self._network_params()
        self.n_iter_ = len(net.history)
        self.loss_curve_ = [row.get("train_loss", np.nan) for row in net.history]
        self.validation_scores_ = self.best_score_ = self.best_epoch_ = None
        if best is not None:
            sign = 1.0 if best.greater_is_better else -1.0
            scores = [row.get(best.monitor, np.nan) for row in net.history]
            self.validation_scores_ = [sign * score for score in scores]
            self.best_epoch_ = best.best_epoch_
            if self.best_epoch_ is not None:
                self.best_score_ = sign * best.best_score_
        self._warn_of_cut(plan)
        self._held_out_ = plan.held_out()  # for the ensemble, which removes it
        self.nonfinite_reports_ = net.nonfinite_reports_
        self.effective_lr_ = self.lr_ * net.guard_.lr_scale

    def _warn_of_cut(self, plan: TrainingPlan) -> None:
        """Warn if the time limit left no range test, or ended the training early.

        The text is the same for all networks of an ensemble or a search, which show it
        once.
        """
        limit, n_epochs = plan.time_limit, plan.net.max_epochs
        if limit is None:
            return
        advice = "Raise max_time to train for more epochs."
        if is_auto(self.lr) and self.learning_rate_range_ is None:
            warn(
                ConvergenceWarning(
                    f"max_time={self.max_time:g} is too short for the range test of "
                    f"lr='auto', so that lr_ is the default, {USUAL_RATE:g}. Raise "
                    "max_time, or pass a number for lr."
                )
            )
        elif is_auto(self.lr):
            advice = (
                "Up to half of the time went to the range test of lr='auto': raise "
                "max_time, or pass a number for lr, to train for more epochs."
            )
        if not limit.is_reached_ or limit.n_epochs_ >= n_epochs:
            return
        kept = "of the last epoch" if plan.best is None else "of the best epoch so far"
        warn(
            TimeLimitWarning(
                f"max_time={self.max_time:g} ended the training before "
                f"max_epochs={n_epochs}; n_iter_ is the number of epochs. The weights "
                f"are those {kept}. {advice}"
            )
        )

    # -- the fitted network --------------------------------------------------------

    def _as_batch(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Return features and targets as the fitted net receives them."""
        X_in = network_input(self, X)
        net = self.net_
        target = self._shape_target(net, X_in, self._as_target(y))
        return torch.from_numpy(X_in).to(net.device), target.to(net.device)

    def _as_target(self, y: Any, name: str = "y") -> np.ndarray:
        """Return ``y`` as the targets that the fitted network is trained on."""
        raise NotImplementedError

    def _network_rows(self, X: Any) -> Tensor:
        """Return features as the fitted network receives them, on its device."""
        return self._on_device(network_input(self, X))

    def _on_device(self, X: np.ndarray) -> Tensor:
        rows, device = torch.from_numpy(X), self._fitted.device
        return rows if device == "cpu" else rows.to(device)

    def _output(self, X: Any) -> Tensor:
        """Return the finite raw output of the fitted network for ``X``."""
        if not hasattr(self, "_fitted"):  # check_is_fitted takes as long as a layer
            check_is_fitted(self)
        X_in, fitted = network_input(self, X), self._fitted
        if len(X_in) == 1:
            output = fitted.output_of_row(X_in)
            if output is not None:
                return output
        rows = self._on_device(X_in)
        n_flops = fitted.flops_per_row_ * rows.shape[0]
        if keeps_threads(n_flops, self.num_threads):
            return fitted.finite_output(rows)
        with threads_for(n_flops, self.num_threads):
            return fitted.finite_output(rows)
