"""Between which moments times lie."""

from datetime import UTC, datetime

MIN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time that a request may name. Far from the year 1, which the driver makes `-infinity` of."""

MAX_TIME = datetime(9000, 1, 1, tzinfo=UTC)
"""The latest one. Far from the end of the year 9999, which the driver makes `infinity` of, in every time zone."""
