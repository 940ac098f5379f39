"""Settings for all tests: one torch thread, plots without a window, and Ctrl-C."""

from __future__ import annotations

import signal

import matplotlib as mpl
import torch

# Very small networks train about four times faster on one thread than on two.
torch.set_num_threads(1)
mpl.use("Agg")

# A shell starts jobs in the background without SIGINT, which tests of Ctrl-C raise.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
