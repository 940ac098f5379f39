"""HTML report of a training."""
