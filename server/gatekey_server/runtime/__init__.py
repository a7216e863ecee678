"""Processes: configuration, what a server is put together from, logs and metrics."""
