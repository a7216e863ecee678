"""Conversions between protobuf messages and values of `gatekey.core`."""
