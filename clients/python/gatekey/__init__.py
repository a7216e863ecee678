"""Gatekey's client side: the generated API in `gatekey.v1`, and the command line in `gatekey.cli`."""
