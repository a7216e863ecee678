"""The command line, which `gatekey_command` starts."""
