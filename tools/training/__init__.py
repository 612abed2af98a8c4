"""Training, judging and exporting the built-in model."""
