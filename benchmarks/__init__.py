"""Benchmarks; times are ratios to peers that run in the same process and in turn."""
