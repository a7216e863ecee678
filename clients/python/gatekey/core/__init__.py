"""The rules and values that clients and servers share. Pure: no I/O, no framework."""
