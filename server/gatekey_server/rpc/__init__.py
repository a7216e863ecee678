"""The edge: gRPC and protobuf on the one side, commands and values of `gatekey.core` on the other."""
