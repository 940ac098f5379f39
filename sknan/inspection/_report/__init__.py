"""HTML report about a training."""
