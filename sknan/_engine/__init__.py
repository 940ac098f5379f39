"""Training of many networks of one shape as one network."""
