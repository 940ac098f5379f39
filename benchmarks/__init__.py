"""Speed as ratios against a peer, timed in the same process and in turn."""
