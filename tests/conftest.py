"""Settings for all tests: one torch thread, and plots without a window."""

from __future__ import annotations

import matplotlib as mpl
import torch

# Very small networks train about four times faster on one thread than on two.
torch.set_num_threads(1)
mpl.use("Agg")
