"""Blockwise numpy kernels for the statistics and the scaling of columns."""
