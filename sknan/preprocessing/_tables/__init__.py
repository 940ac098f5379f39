"""Readers of tables of any library, and the sentinels and schema of their columns."""
