"""Range test of learning rates."""
