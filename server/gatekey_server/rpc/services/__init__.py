"""The servicers: one module for each service, one coroutine function for each of its methods."""
