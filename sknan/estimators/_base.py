"""What the two estimators share: input, the net inside, training, the proof.

An estimator holds a guarded skorch net in ``net_`` instead of being one: scikit-learn's
contract and skorch's differ (state set in ``__init__``, argmax instead of labels, no
input checks), and each is kept exactly by a layer of its own.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils import check_random_state, estimator_html_repr
from sklearn.utils.validation import check_is_fitted, validate_data
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._engine.listeners import EpochTasks
from sknan._engine.plan import TrainingPlan, TrainingRows
from sknan._engine.range_test._test import range_test
from sknan._engine.table_net import TableNet
from sknan._utils.compiled import uncompiled
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.random_state import random_states, seeded
from sknan._utils.threads import FlopCount, threads_for
from sknan._utils.validation import already_valid_array, check_finite, first_text_cell
from sknan.diagnosis._culprits import without_rows
from sknan.estimators._components import (
    resolve_criterion,
    resolve_device,
    resolve_module,
    resolve_optimizer,
)
from sknan.estimators._nested_params import PrefixedParamsMixin
from sknan.estimators._validation_split import ValidationFold, held_out
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets._batching import TensorTable
from sknan.nets._best_weights import BestWeights
from sknan.nets._chain import output_bound
from sknan.nets._training_facts import summary_as_html
from sknan.nets.recovery._mending import rows_without_output, without_output

__all__ = ["CheckedRows", "StableNetBase"]

# A tenth of fewer rows than this is too small a sample to choose an epoch by.
_MIN_ROWS_TO_STOP_EARLY = 500

# Where no value of a float32 network exceeds this, none becomes infinite.
_FAR_FROM_OVERFLOW = 1e30


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(
        value, (bool, np.bool_)
    )


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _calls(value: Any) -> bool:
    """Whether skorch takes it as a callback: an instance, a class, or a named one."""
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[0], str) and _calls(value[1])
    return isinstance(value, Callback) or (
        isinstance(value, type) and issubclass(value, Callback)
    )


# What each parameter must be, as a test and as the words of the message. Those of the
# guard, the clips and the schedule are checked by the net, where they act.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (
        lambda v: (_is_number(v) and 0 < v < math.inf) or _is_auto(v),
        "a finite number above 0 or 'auto'",
    ),
    "max_epochs": (lambda v: _is_integer(v) and v >= 1, "an integer of at least 1"),
    "batch_size": (
        lambda v: (_is_integer(v) and v >= 1) or _is_auto(v),
        "an integer of at least 1 or 'auto'",
    ),
    "weight_decay": (
        lambda v: _is_number(v) and 0 <= v < math.inf,
        "a finite number of at least 0",
    ),
    "early_stopping": (
        lambda v: isinstance(v, (bool, np.bool_)) or v == "auto",
        "True, False or 'auto'",
    ),
    "validation_fraction": (
        lambda v: _is_number(v) and 0 < v < 1,
        "a number between 0 and 1, both excluded",
    ),
    "n_iter_no_change": (
        lambda v: _is_integer(v) and v >= 1,
        "an integer of at least 1",
    ),
    "warm_start": (lambda v: isinstance(v, (bool, np.bool_)), "True or False"),
    "num_threads": (
        lambda v: v == "auto" or (_is_integer(v) and v >= 1),
        "an integer of at least 1 or 'auto'",
    ),
    "compile": (lambda v: isinstance(v, (bool, np.bool_)), "True or False"),
    "verbose": (
        lambda v: isinstance(v, (bool, np.bool_)) or (_is_integer(v) and v >= 0),
        "an integer of at least 0",
    ),
    "callbacks": (
        lambda v: v is None or (isinstance(v, (list, tuple)) and all(map(_calls, v))),
        "a list of skorch callbacks or None",
    ),
}


# Sizes of batches up to so many rows; 1024 above. The smaller the table, the more steps
# an epoch needs to get anywhere.
_AUTO_BATCHES = (
    (700, 32),
    (1500, 64),
    (6000, 128),
    (30_000, 256),
    (100_000, 512),
)


def _numeric_columns(X: np.ndarray) -> tuple[int, ...]:
    """Columns of more than two values."""
    is_between = (X.min(axis=0) != X) & (X.max(axis=0) != X)
    return tuple(np.flatnonzero(is_between.any(axis=0)).tolist())


class CheckedRows(NamedTuple):
    """Rows that an estimator of the same training data has validated already."""

    X: np.ndarray


class StableNetBase(VersionedPickleMixin, CallbackSupportMixin, PrefixedParamsMixin):
    """Guarded network as a scikit-learn estimator; see its two subclasses."""

    _task: ClassVar[str]

    def _check_parameters(self) -> None:
        self._check_no_stray_param()
        for name, (is_right, rule) in _RULES.items():
            value = getattr(self, name)
            if not is_right(value):
                raise ValueError(
                    f"The {name!r} parameter of {type(self).__name__} must be {rule}, "
                    f"got {value!r}."
                )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    def _html_repr(self) -> str:
        """scikit-learn's diagram, and how training went."""
        diagram: str = estimator_html_repr(self)
        return diagram + (summary_as_html(self) if hasattr(self, "net_") else "")

    # -- input ---------------------------------------------------------------------

    def _as_input(self, X: Any, *, reset: bool, min_samples: int = 1) -> np.ndarray:
        """Validate ``X`` and bring it to float32, refusing what is not finite."""
        if isinstance(X, CheckedRows):
            return X.X
        X_in = None if reset else already_valid_array(X, self)
        if X_in is None or len(X_in) < min_samples:
            X_in = self._validated(X, reset=reset, min_samples=min_samples)
        check_finite(
            X_in,
            name="X",
            columns=getattr(self, "feature_names_in_", None),
            remedy=(
                "Impute first: make_pipeline(NaNImputer(), SafeScaler(), "
                f"{type(self).__name__}())."
            ),
        )
        # torch warns of a table that cannot be written to, such as a shared one.
        return np.require(X_in, dtype=np.float32, requirements=["C", "W"])

    def _validated(self, X: Any, *, reset: bool, min_samples: int) -> np.ndarray:
        """``X`` as an array of floats, by scikit-learn's own checks."""
        encode = (
            f" Encode it first: sknan.tabular_pipeline({type(self).__name__}()) does, "
            "or sklearn.preprocessing.OneHotEncoder()."
        )
        with self._text_named("X", X, encode):
            X_in: np.ndarray = validate_data(
                self,
                X,
                reset=reset,
                # Integers and the like become the first of these.
                dtype=(np.float32, np.float64),
                allow_nd=self.module is not None,
                # Looked at later: scikit-learn names neither column nor row.
                ensure_all_finite=False,
                ensure_min_samples=min_samples,
            )
        return X_in

    @contextlib.contextmanager
    def _text_named(self, name: str, values: Any, remedy: str = "") -> Iterator[None]:
        """Say where the text stands that no number can be made of."""
        try:
            yield
        except ValueError as error:
            is_text = "could not convert string" in str(error)
            columns = getattr(values, "columns", None)
            cell = first_text_cell(values, columns) if is_text else None
            if cell is None:
                raise
            raise ValueError(
                f"{name} contains text, first {cell}, but {type(self).__name__} needs "
                f"numbers.{remedy}"
            ) from None

    def _check_has_target(self, y: Any) -> None:
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is "
                "None."
            )

    def _as_weights(self, sample_weight: Any, n_samples: int) -> np.ndarray | None:
        """Weights as float64 that average 1 over the rows with any, or None."""
        if sample_weight is None:
            return None
        if isinstance(sample_weight, numbers.Number):
            sample_weight = np.full(n_samples, sample_weight)
        weights = np.asarray(sample_weight, dtype=np.float64)
        if weights.shape != (n_samples,):
            raise ValueError(
                f"sample_weight must have shape ({n_samples},), one weight per row, "
                f"got {weights.shape}."
            )
        check_finite(
            weights,
            name="sample_weight",
            remedy="Give rows that must not count the weight 0.",
        )
        if (weights < 0).any():
            row = int(np.argmax(weights < 0))
            raise ValueError(
                f"sample_weight must not be negative, but is {weights[row]:g} at row "
                f"{row}."
            )
        if not weights.any():
            raise ValueError(
                "All sample weights are zero: at least one row must count."
            )
        return weights

    def _merge_repeated_rows(
        self, X: np.ndarray, y: np.ndarray, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """Distinct rows, sorted, each with its total weight, if all fit in one batch.

        The loss of a full batch is the same for a row that comes twice and a row of
        weight two, and for any order of the rows; but sums of floats are not, and
        training magnifies the last bit. With this the fitted network is the same to the
        bit. The default network only: layers of one's own may look across rows.
        """
        is_per_row = hasattr(self._build_criterion(per_row=False), "reduction")
        is_one_batch = len(X) <= self.rows_per_batch(len(X))
        if self.module is not None or not is_one_batch or not is_per_row:
            return X, y, weights, np.arange(len(X))
        rows = np.column_stack([X.astype(np.float64), y])
        _, first, inverse = np.unique(
            rows, axis=0, return_index=True, return_inverse=True
        )
        if len(first) < 2:
            return X, y, weights, np.arange(len(X))
        total = np.bincount(inverse.reshape(-1), weights=weights)
        return X[first], y[first], total.astype(np.float64), first

    # -- training ------------------------------------------------------------------

    def _build_criterion(self, *, per_row: bool) -> nn.Module:
        return resolve_criterion(
            self.criterion,
            self._params_for("criterion"),
            task=self._task,
            per_row=per_row,
            owner=type(self).__name__,
        )

    def _build_net(self, X: np.ndarray, n_outputs: int, *, per_row: bool) -> TableNet:
        owner = type(self).__name__
        module, module_params = resolve_module(
            self.module,
            self._params_for("module"),
            self._sizes(X, n_outputs),
            owner,
        )
        if "lr" in self._params_for("optimizer"):
            raise ValueError(
                f"{owner} got optimizer__lr: the learning rate is its parameter lr."
            )
        optimizer, optimizer_params = resolve_optimizer(
            self.optimizer, self._params_for("optimizer"), self.weight_decay, owner
        )
        net = TableNet(
            module,
            self._build_criterion(per_row=per_row),
            optimizer=optimizer,
            lr=self.lr_,
            max_epochs=self.max_epochs,
            batch_size=self.rows_per_batch(len(X)),
            train_split=None,
            callbacks=list(self.callbacks or ()),
            compile=self.compile,
            warm_start=True,  # when to start anew is decided here
            verbose=self.verbose,
            device=resolve_device(self.device),
            on_nonfinite=self.on_nonfinite,
            max_recoveries=self.max_recoveries,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            adaptive_clip=self.adaptive_clip,
            lr_schedule=self.lr_schedule,
            warmup=self.warmup,
            **{f"module__{name}": value for name, value in module_params.items()},
            **{f"optimizer__{name}": v for name, v in optimizer_params.items()},
            **{f"compile__{k}": v for k, v in self._params_for("compile").items()},
        )
        net.initialize()
        return net

    def _sizes(self, X: np.ndarray, n_outputs: int) -> dict[str, Any]:
        """What is filled in where the module's constructor takes it."""
        sizes: dict[str, Any] = {"n_features_in": X.shape[1], "n_outputs": n_outputs}
        if self._params_for("module").get("n_frequencies"):
            sizes["numeric_columns"] = _numeric_columns(X)
        return sizes

    def rows_per_batch(self, n_rows: int) -> int:
        """Rows in a step of a training on so many: ``batch_size``, or its choice.

        Parameters
        ----------
        n_rows : int
            Rows of the table, those held out included.

        Returns
        -------
        int
        """
        if not _is_auto(self.batch_size):
            return int(self.batch_size)
        return next((size for below, size in _AUTO_BATCHES if n_rows < below), 1024)

    @with_callbacks  # type: ignore[untyped-decorator]
    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        fold: ValidationFold | None = None,
    ) -> None:
        """All of ``fit``; scikit-learn's callbacks are told of it."""
        self._check_parameters()
        tasks = EpochTasks()
        tasks.begin(self, X, y, sample_weight)
        plan = self._prepare(X, y, sample_weight, fold=fold)
        plan.run(tasks if tasks.has_listeners else None)
        self._finish(plan)
        tasks.end()

    def _training_rows(self, *args: Any, **kwargs: Any) -> TrainingRows:
        """Check parameters and data, and bring the data into the form of training."""
        raise NotImplementedError

    def _prepare(
        self, *args: Any, fold: ValidationFold | None = None, **kwargs: Any
    ) -> TrainingPlan:
        """All of ``fit`` that comes before training; takes what ``fit`` takes.

        With early stopping ``fold`` is held out, if there are rows for one.
        """
        return self._plan(self._training_rows(*args, **kwargs), fold)

    def _plan(
        self,
        rows: TrainingRows,
        fold: ValidationFold | None = None,
        like: TrainingPlan | None = None,
    ) -> TrainingPlan:
        """A training on these rows: from scratch, or on where that was asked for.

        The table of another one serves here too, without another trial of the module,
        if that one is ``like`` this: of the same rows and the same kind of estimator.
        """
        X, y, weights, n_outputs, is_partial, _ = rows
        goes_on = hasattr(self, "net_") and (is_partial or self.warm_start)
        if not goes_on:
            self._rng = check_random_state(self.random_state)
        seed = int(self._rng.randint(np.iinfo(np.int32).max))
        split_seed = int(self._rng.randint(np.iinfo(np.int32).max))
        self._set_rate(rows, seed, goes_on=goes_on)
        stops_early = not is_partial and (
            len(X) >= _MIN_ROWS_TO_STOP_EARLY
            if self.early_stopping == "auto"
            else self.early_stopping
        )
        if weights is not None:
            weights = weights / weights.mean()
            if (weights == weights[0]).all():
                weights = None
        device = resolve_device(self.device)
        with seeded(seed, device):
            if goes_on:
                net = self._update_net(per_row=weights is not None)
            else:
                net = self._build_net(X, n_outputs, per_row=weights is not None)
            if like is None:
                table = self._table(net, rows._replace(weights=weights))
            else:
                table = like.table
                net.flops_per_row_ = like.net.flops_per_row_
            states = random_states(device)
        return TrainingPlan(
            net=net,
            table=table,
            best=BestWeights(self.n_iter_no_change) if stops_early else None,
            split=lambda seed: self._split(y, seed, fold),
            split_seed=split_seed,
            random_states=states,
            num_threads=self.num_threads,
            is_partial=is_partial,
        )

    def _table(self, net: TableNet, its: TrainingRows) -> TensorTable:
        """Rows as the net takes them, once its module has been tried on a few."""
        targets: Any = self._shape_target(net, its.X, its.y).to(net.device)
        if its.weights is not None:
            weights = torch.from_numpy(its.weights).float().to(net.device)
            targets = (targets, weights)
        return TensorTable(
            torch.from_numpy(its.X).to(net.device),
            targets,
            torch.from_numpy(its.numbers),
            getattr(self, "feature_names_in_", None),
        )

    def _set_rate(self, its: TrainingRows, seed: int, *, goes_on: bool) -> None:
        """Set the rate to train at, and what it was found by."""
        if not _is_auto(self.lr):
            self.lr_ = float(self.lr)
            self.learning_rate_range_ = None
        elif goes_on:  # a range test is about a network that is not trained
            self.lr_ = float(self.net_.lr)
        else:
            self.learning_rate_range_ = range_test(
                self, its, seed, verbose=self.verbose == 1
            )
            self.lr_ = self.learning_rate_range_.suggestion

    def _finish(self, plan: TrainingPlan) -> None:
        """Prove what was trained, and take it over."""
        net, best = plan.net, plan.best
        self._prove_finite(net, plan.table.X)
        if not (plan.is_partial or self.warm_start):
            for optimizer in net._all_optimizers():
                optimizer.state.clear()
        net._zero_grad_optimizer(set_to_none=True)
        self.net_ = net
        self.n_iter_ = len(net.history)
        self.best_epoch_ = None if best is None else best.best_epoch_
        self.nonfinite_reports_ = net.nonfinite_reports_
        self.effective_lr_ = net.effective_lr_

    def _update_net(self, *, per_row: bool) -> TableNet:
        """The net of the last training, with the parameters that may change."""
        net: TableNet = self.net_
        names = (
            "max_epochs",
            "verbose",
            "on_nonfinite",
            "max_recoveries",
            "clip_norm",
            "clip_value",
            "adaptive_clip",
            "lr_schedule",
            "warmup",
        )
        changes = {name: getattr(self, name) for name in names}
        if not _is_auto(self.batch_size):
            changes["batch_size"] = self.batch_size
        if self.lr_ != net.lr:
            changes["lr"] = self.lr_
        net.set_params(**changes)
        criterion = self._build_criterion(per_row=per_row)
        if hasattr(criterion, "reduction"):
            net.criterion_.reduction = criterion.reduction
        return net

    def _split(
        self, y: np.ndarray, seed: int, fold: ValidationFold | None = None
    ) -> tuple[Tensor, Tensor]:
        """Indices of the training and validation rows."""
        if fold is not None and len(y) >= fold.n_folds:
            is_of_classes = self._task == "classification"
            train, valid = fold.split(len(y), y if is_of_classes else None)
            return torch.from_numpy(train), torch.from_numpy(valid)
        n_valid = math.ceil(self.validation_fraction * len(y))
        if n_valid >= len(y):
            raise ValueError(
                f"validation_fraction={self.validation_fraction!r} holds out {n_valid} "
                f"of {len(y)} rows, which leaves none to train on. Lower it, or set "
                "early_stopping=False."
            )
        classes = None
        if self._task == "classification":
            counts = np.bincount(y)
            counts = counts[counts > 0]
            fits = n_valid >= len(counts) and len(y) - n_valid >= len(counts)
            classes = y if counts.min() >= 2 and fits else None
        train, valid = held_out(len(y), n_valid, seed, classes)
        return torch.from_numpy(train), torch.from_numpy(valid)

    def _as_batch(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Inputs and targets as the fitted network gets them, for a diagnosis."""
        X_in = self._as_input(X, reset=False)
        target = self._shape_target(self.net_, X_in, self._as_target(y))
        return torch.from_numpy(X_in).to(self.net_.device), target.to(self.net_.device)

    def _as_target(self, y: Any) -> np.ndarray:
        """Targets as the fitted network is trained on them."""
        raise NotImplementedError

    def _shape_target(self, net: TableNet, X: np.ndarray, y: np.ndarray) -> Tensor:
        """Try the module on a few rows, and bring ``y`` to the shape of its output."""
        # A copy: the module may work in place.
        probe = torch.from_numpy(X[:32].copy()).to(net.device)
        net._set_training(False)
        n_rows = len(probe)
        try:
            with torch.no_grad(), uncompiled(net), FlopCount() as count:
                try:
                    output = net.infer(probe)
                except LinAlgError as error:
                    bad = rows_without_output(net, (probe, None))
                    if len(bad) in (0, len(probe)):
                        raise without_output(net, (probe, None), error) from error
                    probe = without_rows(probe, bad, len(probe))
                    output = net.infer(probe)
        except Exception as error:
            name = type(net.module_).__name__
            error.add_note(f"while calling the module {name} on X of shape {X.shape}")
            raise
        net.flops_per_row_ = count.n_flops / n_rows
        output = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(output, Tensor) or len(output) != len(probe):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output)
            raise ValueError(
                f"The module must return a tensor with one row per sample, got {found} "
                f"for {len(probe)} samples."
            )
        return self._match_target(net.criterion_, output, y)

    def _match_target(
        self, criterion: nn.Module, output: Tensor, y: np.ndarray
    ) -> Tensor:
        raise NotImplementedError

    def _prove_finite(self, net: TableNet, X: Tensor) -> None:
        """Hold the outputs on all training rows against NaN and infinity."""
        if output_bound(net.module_, X) < _FAR_FROM_OVERFLOW:
            return
        with warnings.catch_warnings():
            # What had to be repaired in training has been reported.
            warnings.filterwarnings("ignore", "The network's output was not finite")
            output, bad = net.raw_output(X)
        if bad:
            raise NonFiniteTrainingError(
                f"After training, the output is non-finite for {len(bad)} of "
                f"{len(output)} training rows, first row {bad[0]}, although all "
                "weights are finite. Look for an operation in the module that "
                "overflows in evaluation mode, and scale X with SafeScaler()."
            )

    # -- prediction ----------------------------------------------------------------

    def _output(self, X: Any) -> Tensor:
        """Raw output of the fitted network for ``X``, proven finite."""
        if not hasattr(self, "net_"):  # to ask without need takes as long as a layer
            check_is_fitted(self)
        X_in = self._as_input(X, reset=False)
        rows = torch.from_numpy(X_in).to(self.net_.device)
        with threads_for(self.net_.flops_per_row_ * len(rows), self.num_threads):
            output, bad = self.net_.raw_output(rows)
        if bad:
            raise NonFiniteTrainingError(
                f"The network's output is non-finite for {len(bad)} of {len(output)} "
                f"rows, first row {bad[0]}, although X is finite: its values lie far "
                "outside the training data. Bound them with SafeScaler()."
            )
        return output
