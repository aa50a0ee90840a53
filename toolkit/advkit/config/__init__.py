"""What was asked for, and what that means: layers, run files, recipes, the resolved run."""
