"""Times and durations, as people write them."""

import re
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from gatekey.cli.problems import Misuse

_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_time(text: str) -> Timestamp:
    """Read `2027-01-01T00:00:00Z`, or a day, which begins in UTC. Raises `ValueError`."""
    time = Timestamp()
    time.FromJsonString(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)
    return time


def read_duration(option: str, text: str) -> timedelta:
    """Read `90s`, `15m`, `12h`, `30d` or `2w`. Raises `Misuse`."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise Misuse(f"{option} {text}: a duration such as 90s, 15m, 12h, 30d or 2w is required")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def read_moment(option: str, text: str) -> Timestamp:
    """Read a time, or how long ago: `2027-01-01T00:00:00Z` or `7d`. Raises `Misuse`."""
    try:
        if not _DURATION.fullmatch(text):
            return read_time(text)
        moment = Timestamp()
        moment.FromDatetime(datetime.now(UTC) - read_duration(option, text))
    except OverflowError:
        raise Misuse(f"{option} {text}: begins before the year 1") from None
    except ValueError:
        raise Misuse(f"{option} {text}: a time such as 2027-01-01T00:00:00Z is required, or 7d for then ago") from None
    return moment
