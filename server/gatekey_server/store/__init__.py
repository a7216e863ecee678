"""PostgreSQL: the only package that knows SQL and the driver.

It has one module per aggregate, and the SQL is in `queries/`. Functions take the `Connection` of a transaction
(`Database.transaction`) and return values of `gatekey.core`; None for a row that does not exist. A database that
cannot be reached raises `gatekey.core.errors.Unavailable`.
"""
