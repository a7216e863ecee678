"""When there is more to do than can be done: a queue that stands is cut, one that passes is not.

After the idea of CoDel (Nichols and Jacobson, "Controlling queue delay", 2012; RFC 8289): a burst
makes a queue that is gone a moment later, and refusing part of it would help nobody. A queue that is
still there after a while is the sign of overload, and only makes everyone wait.
"""

MAX_WAIT_S = 0.005
"""How long calls may wait in a queue that stands."""

STANDING_S = 0.1
"""How long calls must have waited longer than that, one after the other, for a queue to stand."""

RECOVERY_S = 1.0
"""For how long after an overload the next queue counts as one that stands at once."""


class Queue:
    """Judges the calls that wait, in the order in which they came. Times in seconds, of any clock."""

    def __init__(self) -> None:
        self._late_since: float | None = None
        self._judged_at = float("-inf")
        self._overloaded_until = float("-inf")

    def is_too_long(self, received_at: float, now: float) -> bool:
        """Whether a call that was received at a time, and is now to be begun, is better refused."""
        is_late, is_first = now - received_at > MAX_WAIT_S, now - self._judged_at > STANDING_S
        self._judged_at = now
        if not is_late:
            self._late_since = None
            return False
        if self._late_since is None or is_first:
            self._late_since = now
        if now >= self._overloaded_until and now - self._late_since < STANDING_S:
            return False
        self._overloaded_until = now + RECOVERY_S
        return True
