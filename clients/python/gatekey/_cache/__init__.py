"""The client's cache: what it knows, how that is written, and who makes its calls."""
