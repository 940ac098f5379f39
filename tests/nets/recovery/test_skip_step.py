"""Trainings under the policies 'skip' and 'raise'."""

from __future__ import annotations

import numpy as np
import pytest
from failing_trainings import LogOfFirst, network_of, refused, with_bad_rows


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_skip_and_raise_neither_repair_operations_nor_drop_rows(policy):
    net = network_of(LogOfFirst, on_nonfinite=policy, max_recoveries=100, max_epochs=2)
    error = refused(net, with_bad_rows())
    assert error.report.operation == "aten.log"
    assert str(error) == str(error.report)
    assert ("After training, " in str(error)) is (policy == "skip")
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert recoveries == {"The step was left out." if policy == "skip" else ""}
    assert np.isnan(net.forward(with_bad_rows()).numpy()).any()
