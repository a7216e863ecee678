"""Processes: configuration, the composition root, logs and metrics."""
