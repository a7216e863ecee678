"""Clients that try to stop a server, and what the server bounds them with."""
