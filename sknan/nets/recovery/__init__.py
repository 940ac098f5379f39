"""Recoveries from a failed training step."""
