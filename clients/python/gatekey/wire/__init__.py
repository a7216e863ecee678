"""Protobuf messages from and to the values of `gatekey.core`: what the server and the client's cache both read."""
