"""Use cases, one a function: each authorises, does its work in one transaction, and returns the result."""
