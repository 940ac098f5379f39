"""Neural networks on messy tables that never end in NaN."""
