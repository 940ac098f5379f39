"""Blocked numpy kernels for the statistics of columns."""
