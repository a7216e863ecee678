"""The edge: gRPC and protobuf on the one side, commands and domain values on the other."""
