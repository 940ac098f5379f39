"""Recovery by leaving out the rows of a batch that are to blame."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from skorch.dataset import get_len, unpack_data

from sknan._utils.thresholds import N_TRIALS
from sknan.diagnosis._culprits import without_rows
from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.repeat import repeat_step

# Batch normalization needs two rows.
_FEWEST_ROWS = 2


class DropRows:
    """Repeat a step without the rows to blame, if they are a minority of the batch."""

    says = "The step was taken without the rows to blame."

    def applies(self, failure: Failure) -> bool:
        """Whether a minority of the rows made the step fail.

        If only the gradient fails, the rows are needed unless their data are at fault.
        """
        report = failure.latest.report
        is_needed = report.phase == "backward" and report.cause != "data"
        if not failure.is_repeatable or is_needed:
            return False
        n_rows = int(get_len(unpack_data(failure.batch)[0]))
        n_bad = len(failure.latest.rows)
        return 0 < n_bad <= n_rows // 2 and n_rows - n_bad >= _FEWEST_ROWS

    def attempt(self, training: Training, failure: Failure, batch: Any) -> Answer:
        """Drop rows and repeat the step, as long as other rows turn out to be bad."""
        step, n_rows = None, get_len(unpack_data(batch)[0])
        left = np.arange(n_rows)  # in the whole batch
        while step is None and failure.n_attempts < N_TRIALS and self.applies(failure):
            rows = failure.latest.rows
            failure.batch = without_rows(failure.batch, rows, len(left))
            left = np.delete(left, rows)
            if 2 * len(left) < n_rows:
                break
            step = repeat_step(training, failure, "without_rows", self.says)
        if step is not None:
            dropped = tuple(np.setdiff1d(np.arange(n_rows), left).tolist())
            report = dataclasses.replace(failure.report, rows=dropped, columns=())
            rows = training.in_data(report).rows
            reports = training.guard.reports
            reports[-1] = dataclasses.replace(reports[-1], rows=rows)
            if failure.report.rows_in == "data":
                training.left_out.update(rows)
        return step
