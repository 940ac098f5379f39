"""Score of the held-out rows after each epoch, by which the best one is chosen."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

from sklearn.metrics import get_scorer
from skorch.callbacks import Callback

from sknan._engine.prediction import UserRows
from sknan._engine.table_net import TableNet
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.random_state import kept_random_states
from sknan._utils.validation import is_number
from sknan._utils.warn import recorded_warnings
from sknan.exceptions import NonFiniteTrainingError


class ValidationScore(Callback):
    """Callback that records the score of the held-out rows in the history.

    The scorer receives an estimator with the weights of the epoch, and the rows in the
    labels and units of the user.

    Parameters
    ----------
    estimator : StableNetClassifier or StableNetRegressor
        Estimator that is trained. It is not changed.

    Attributes
    ----------
    monitor : str
        Key of the score in the history.
    """

    monitor = "valid_score"

    def __init__(self, estimator: Any) -> None:
        self.scoring = scoring = estimator.scoring
        self.scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring
        if scoring is None:
            self.scorer = type(estimator).score
        # Rows of an array have no column names.
        self.estimator = copy.copy(estimator)
        vars(self.estimator).pop("feature_names_in_", None)

    def on_epoch_end(
        self, net: TableNet, dataset_valid: UserRows | None = None, **_: Any
    ) -> None:
        """Record the score; NaN if an output is not finite."""
        assert dataset_valid is not None
        self.estimator._fitted = net
        try:
            # A repair of outputs is reported when the fitted network predicts.
            with kept_random_states(net.device), recorded_warnings():
                score = self._score(dataset_valid)
        except NonFiniteTrainingError:
            score = math.nan
        except Exception as error:
            error.add_note(
                f"while computing scoring={self.scoring!r} of {len(dataset_valid)} "
                f"held-out rows after epoch {len(net.history)}"
            )
            raise
        finally:
            del self.estimator._fitted
        net.history.record(self.monitor, score)

    def _score(self, rows: UserRows) -> float:
        weights = {}
        if isinstance(rows.table.y, tuple) and _accepts_weights(self.scorer):
            weights["sample_weight"] = rows.table.y[1].numpy(force=True)
        X = rows.X if self.estimator._scaling is not None else rows.X.numpy(force=True)
        score = self.scorer(self.estimator, X, rows.y, **weights)
        if not is_number(score):
            raise ValueError(f"scoring must return a number, got {score!r}.")
        return float(score)

    def refuse(self, n_epochs: int, n_rows: int) -> None:
        """Raise the error of a score that was finite in no epoch."""
        raise ValueError(
            f"scoring={self.scoring!r} is not finite for the {n_rows} held-out rows in "
            f"any of {n_epochs} epochs, so that no epoch is the best. Hold out more "
            "rows, of each class, by validation_split or X_val, or choose another "
            "scoring."
        )


def _accepts_weights(scorer: Any) -> bool:
    function = getattr(scorer, "_score_func", scorer)
    try:
        return "sample_weight" in inspect.signature(function).parameters
    except unless(is_of_signal, TypeError, ValueError):
        return False
