"""What every test shares: one torch thread, and the folder of shared tables if any."""

from __future__ import annotations

import matplotlib as mpl
import torch

# Tiny nets run about four times faster on one thread than on two.
torch.set_num_threads(1)
mpl.use("Agg")
