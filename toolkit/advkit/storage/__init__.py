"""What lies on disk: checkpoints, run folders, weights."""
