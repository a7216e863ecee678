"""Which calls are refused when there is more to do than can be done."""

from gatekey_server.rpc.overload import MAX_WAIT_S, RECOVERY_S, STANDING_S, Queue

LATE_S = MAX_WAIT_S * 2


def judge(queue: Queue, start: float, seconds: float, waited: float) -> list[bool]:
    """Judge a call every millisecond, each of which has waited as long."""
    times = [start + number / 1000 for number in range(int(seconds * 1000))]
    return [queue.is_too_long(now - waited, now) for now in times]


def test_calls_that_hardly_wait_are_all_begun() -> None:
    assert not any(judge(Queue(), 0, 10, MAX_WAIT_S / 2))


def test_a_burst_is_no_overload() -> None:
    queue = Queue()
    for start in range(5):
        assert not any(judge(queue, start, STANDING_S * 0.9, LATE_S))
        assert not any(judge(queue, start + 0.5, 0.01, 0))


def test_a_queue_that_stands_is_cut() -> None:
    verdicts = judge(Queue(), 0, 1, LATE_S)
    assert verdicts.index(True) == STANDING_S * 1000
    assert all(verdicts[verdicts.index(True) :])


def test_what_has_not_waited_is_begun_in_an_overload_too() -> None:
    queue = Queue()
    judge(queue, 0, 1, LATE_S)
    assert not any(judge(queue, 1, 0.01, 0))
    assert all(judge(queue, 1.02, 0.01, LATE_S))


def test_an_overload_is_over_after_a_while() -> None:
    queue = Queue()
    judge(queue, 0, 1, LATE_S)
    assert not any(judge(queue, 1 + RECOVERY_S, STANDING_S * 0.9, LATE_S))
