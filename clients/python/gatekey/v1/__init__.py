"""The API `gatekey.v1`. All modules in here are generated from `protos/` by `make protos`."""
