"""Recovery by leaving out the rows of a batch that are to blame."""

from __future__ import annotations

from typing import Any

from skorch.dataset import get_len, unpack_data

from sknan.diagnosis._culprits import without_rows
from sknan.nets.recovery.protocol import Answer, Failure, Training
from sknan.nets.recovery.repeat import MOST_REPETITIONS, repeat_step

# Batch normalization needs two rows.
_FEWEST_ROWS = 2


class DropRows:
    """Repeat a step without the rows to blame, if they are a minority of the batch."""

    says = "The step was taken without the rows to blame, clipped to norm 1."

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
        step = None
        while step is None and (
            failure.n_attempts < MOST_REPETITIONS and self.applies(failure)
        ):
            n_rows = get_len(unpack_data(failure.batch)[0])
            failure.batch = without_rows(failure.batch, failure.latest.rows, n_rows)
            step = repeat_step(training, failure, "without_rows", self.says)
        if step is not None and failure.report.rows_in == "data":
            training.left_out.update(failure.report.rows)
        return step
