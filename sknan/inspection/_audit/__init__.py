"""Findings about a table that would disturb training."""
