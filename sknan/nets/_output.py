"""Mixin that repairs and checks the outputs of a skorch net."""

from __future__ import annotations

from typing import Any

import numpy as np
from skorch.dataset import unpack_data
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sknan._utils.settings import usual_settings
from sknan.nets._data import refuse_nonfinite_data
from sknan.nets.recovery.output_repair import (
    nonfinite_output_error,
    output_repaired,
    rows_with_output,
    without_output,
)

# At run time the next base class is a skorch net.
_SkorchNet: Any = object


class OutputMixin(_SkorchNet):
    """Validation and prediction of a skorch net, without non-finite outputs."""

    on_nonfinite: str

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a validation batch; parameters as in skorch.

        Rows for which the network has no output, because a matrix decomposition fails,
        are left out.
        """
        try:
            step: dict[str, Any] = super().validation_step(batch, **fit_params)
        except LinAlgError as error:
            rest = rows_with_output(self, batch, error)
            step = super().validation_step(rest, **fit_params)
        return step

    @usual_settings(any_dtype=True)
    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        """Compute the output for one batch; parameters as in skorch.

        Under ``on_nonfinite="recover"`` a row whose output is not finite although its
        input is, is computed again with each operation kept inside its domain. A
        warning gives the number of these rows.
        """
        try:
            outputs = super().evaluation_step(batch, training=training)
        except LinAlgError as error:
            raise without_output(self, batch, error) from error
        if training or self.on_nonfinite != "recover":
            return outputs
        return output_repaired(self, unpack_data(batch)[0], outputs)

    @usual_settings(any_dtype=True)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the output of the module, as probabilities if the criterion is known.

        Parameters
        ----------
        X : array-like, Tensor, dict, list or Dataset
            Inputs, as in skorch.

        Returns
        -------
        ndarray

        Raises
        ------
        NonFiniteDataError
            If an output is NaN or infinite and ``X`` is not finite.
        NonFiniteTrainingError
            If an output is NaN or infinite although ``X`` is finite.
        """
        output: np.ndarray = super().predict_proba(X)
        # Minus infinity is the logit of a class that is ruled out.
        bad = np.isnan(output) | np.isposinf(output)
        if bad.any():
            refuse_nonfinite_data("X", X)
            raise nonfinite_output_error(output, bad)
        return output
