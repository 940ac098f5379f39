"""Settings for all tests: threads, plots, generated examples and Ctrl-C."""

from __future__ import annotations

import signal

import matplotlib as mpl
import torch
from hypothesis import HealthCheck, settings

# Very small networks train about four times faster on one thread than on two.
torch.set_num_threads(1)
mpl.use("Agg")

# The speed of the machine decides no test.
settings.register_profile(
    "sknan", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sknan")

# A shell starts jobs in the background without SIGINT, which tests of Ctrl-C raise.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
