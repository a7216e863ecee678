"""The range of times."""

from datetime import UTC, datetime

MIN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time in a request. It is far from the year 1, which the driver turns into `-infinity`."""

MAX_TIME = datetime(9000, 1, 1, tzinfo=UTC)
"""The latest one. It is far from the end of the year 9999, which the driver turns into `infinity`, in any time zone."""
