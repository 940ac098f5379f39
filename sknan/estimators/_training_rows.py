"""Validated rows of a table, as an estimator trains its network on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_consistent_length

from sknan._engine.plan import TrainingRows
from sknan._engine.prediction import ColumnScaling
from sknan.estimators._column_scaling import scaling_for
from sknan.estimators._input import (
    as_network_input,
    check_features,
    check_sample_weight,
    require_target,
    rows_that_count,
)
from sknan.estimators._labels import apply_class_weight
from sknan.estimators._net_building import NetBuildingMixin
from sknan.estimators._parameters import check_parameters
from sknan.estimators._validation_data import (
    FitData,
    check_groups,
    with_validation_rows,
)
from sknan.estimators._validation_split import (
    HoldOut,
    UserSplits,
    groups_of_chunks,
    is_chunks,
)
from sknan.preprocessing._stored_table import stored_chunks


class TrainingRowsMixin(NetBuildingMixin):
    """Validation of parameters and data, for a new or a continued training.

    A subclass defines how targets are validated (``_validate_target``) and encoded for
    training (``_encode_target``).
    """

    _scaling: ColumnScaling | None

    def _check_parameters(self) -> None:
        check_parameters(self)

    def _validate_target(self, y: Any, name: str = "y") -> np.ndarray:
        """Return the targets as an array of labels or numbers, or refuse them."""
        raise NotImplementedError

    def _encode_target(
        self, y: Any, target: np.ndarray, weights: np.ndarray | None, is_partial: bool
    ) -> tuple[np.ndarray, int]:
        """Set the fitted attributes of the target.

        Return the codes or numbers that the network is trained on, and the number of
        outputs it needs. ``target`` contains the validated ``y`` of the rows to train
        on.
        """
        raise NotImplementedError

    def _refuse_outlying_targets(
        self, target: np.ndarray, numbers: np.ndarray, *, is_new: bool
    ) -> None:
        """Refuse or warn of targets that outweigh all the others."""

    def _continues(self, is_partial: bool) -> bool:
        """Whether training continues with the present network."""
        return hasattr(self, "_fitted") and (is_partial or self.warm_start)

    def _training_rows(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        is_partial: bool = False,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        groups: Any = None,
        chunk: np.ndarray | None = None,
        **target_params: Any,
    ) -> TrainingRows:
        """Check parameters and data, and bring the data into the form of training."""
        self._check_parameters()
        owner = type(self).__name__
        require_target(self, y)
        X_val, y_val, _ = stored_chunks(X_val, y_val)
        data = FitData(X_val, y_val, sample_weight_val, groups)
        has_validation_data = data.is_validated(
            self.early_stopping, self.validation_split
        )
        is_new = not self._continues(is_partial)
        if not is_new:
            self._check_same_network()
        X_raw = check_features(
            self, X, reset=is_new, min_samples=1 if is_partial else 2
        )
        target = self._validate_target(y)
        check_consistent_length(X_raw, target)
        weights = check_sample_weight(sample_weight, len(X_raw))
        group_of = check_groups(groups, len(X_raw))
        splitter = self.validation_split
        if is_chunks(splitter):
            splitter = None
            group_of = None if is_partial else groups_of_chunks(chunk, group_of)
        target_of_all = target
        by_class = getattr(self, "class_weight", None)  # only classifiers have it
        if by_class is not None and target.ndim == 1:
            weights = apply_class_weight(by_class, target, weights, owner, is_partial)
        X_raw, target, weights, numbers, positions = rows_that_count(
            X_raw,
            target,
            weights,
            lambda n: self._merges_duplicates(n) and group_of is None,
        )
        self._refuse_outlying_targets(target, numbers, is_new=is_new)
        codes, n_outputs = self._encode_target(
            y, target, weights, is_partial, **target_params
        )
        if is_new:
            module = self._module_for(X_raw, n_outputs)
            names = getattr(self, "feature_names_in_", None)
            self._scaling = scaling_for(module, X_raw, weights, numbers, names, owner)
        X_in = as_network_input(X_raw, self._scaling)
        splits = None
        if splitter is not None:
            splits = UserSplits(splitter, X, target_of_all, group_of, numbers)
        if group_of is not None:
            group_of = np.unique(group_of[numbers], return_inverse=True)[1]
        is_classification = self._task == "classification"
        rows = TrainingRows(
            X_in,
            codes,
            weights,
            n_outputs,
            is_partial,
            numbers,
            positions,
            HoldOut(self.validation_fraction, is_classification, splits, group_of),
        )
        if has_validation_data:
            rows = with_validation_rows(self, rows, data)
        return rows

    def _merges_duplicates(self, n_rows: int) -> bool:
        """Whether merged rows of equal content train the same network.

        They do if all rows are in one batch, the loss is a mean over rows, and the
        module is the default one. The layers of a custom module may relate rows.
        """
        is_per_row = hasattr(self._build_criterion(per_row=False), "reduction")
        is_one_batch = n_rows <= self.rows_per_batch(n_rows)
        # The order of the rows matters to a splitter.
        is_split = self.validation_split is not None
        return self.module is None and is_one_batch and is_per_row and not is_split
