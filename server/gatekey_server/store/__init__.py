"""PostgreSQL: the only place that knows SQL and the driver.

One module an aggregate; the SQL itself is in `queries/`. Functions take a `Connection` that a
transaction gave (`Database.transaction`) and answer domain values. What is not there is answered
with None; a database that cannot be reached raises `domain.errors.Unavailable`.
"""
