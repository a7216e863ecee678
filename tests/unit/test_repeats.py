"""Requests that are asked again."""

from typing import cast

from gatekey_server.domain.decisions import Fact
from gatekey_server.rpc import repeats
from gatekey_server.rpc.repeats import Repeat, Repeats
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.text(st.characters(codec="ascii"), max_size=5)


def repeat(number: int) -> Repeat:
    return Repeat((), cast("Fact", None), (), None, 0, None, None, str(number).encode())


@given(TEXTS, st.binary(max_size=5), TEXTS, st.binary(max_size=5))
def test_two_requests_have_one_name_exactly_if_they_are_equal(
    one: str, data: bytes, other: str, other_data: bytes
) -> None:
    known = Repeats()
    same = (one, data) == (other, other_data)
    assert (known.name(one, data) == known.name(other, other_data)) == same
    # Whatever is moved from one to the other.
    assert known.name(one, other.encode() + data) != known.name(one + other, data) or not other


def test_a_name_tells_nothing_outside_its_process() -> None:
    assert Repeats().name("Bearer x", b"y") != Repeats().name("Bearer x", b"y")


def test_what_was_not_asked_again_for_long_is_forgotten() -> None:
    known = Repeats()
    for number in range(3 * repeats.MAX_REQUESTS):
        known.put(b"%d" % number, repeat(number))
        known.get(b"0")
    assert len(known) <= repeats.MAX_REQUESTS
    assert known.get(b"0") == repeat(0)
    assert known.get(b"1") is None
    assert known.get(b"%d" % (3 * repeats.MAX_REQUESTS - 1))
