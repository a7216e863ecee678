"""Protobuf messages from and to the values of the domain."""
