"""Background tasks of a server: writing uses and waits, and purging what has expired."""
