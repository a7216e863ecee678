"""Requests that are asked again, and batches of them as bytes."""

from typing import Any, cast

from gatekey.v1 import check_service_pb2 as pb
from gatekey_server.rpc import batches, repeats
from gatekey_server.rpc.repeats import Repeats
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.text(st.characters(codec="ascii"), max_size=5)
DATA = st.binary(max_size=5)


def new_repeats() -> Repeats:
    return Repeats(cast("Any", None), cast("Any", None), lambda _: b"")


KNOWN = new_repeats()


@given(TEXTS, DATA, TEXTS, DATA)
def test_two_requests_have_one_name_exactly_if_they_are_equal(
    one: str, data: bytes, other: str, other_data: bytes
) -> None:
    same = (one, data) == (other, other_data)
    assert (KNOWN.names(one)(data) == KNOWN.names(other)(other_data)) == same
    # Whatever is moved from the one text to the other.
    assert KNOWN.names(one)(other.encode() + data) != KNOWN.names(one + other)(data) or not other


def test_a_name_tells_nothing_outside_its_process() -> None:
    assert new_repeats().names("Bearer x")(b"y") != new_repeats().names("Bearer x")(b"y")


def test_what_was_not_asked_again_for_long_is_forgotten() -> None:
    most = repeats.MAX_REQUESTS
    recent = repeats.Recent[int](most)
    for number in range(3 * most):
        recent.put(b"%d" % number, number)
        recent.get(b"0")
        assert len(recent) <= most + 1
    assert (recent.get(b"0"), recent.get(b"1"), recent.get(b"%d" % (3 * most - 1))) == (0, None, 3 * most - 1)


CHECKS = st.builds(
    pb.CheckRequest,
    key=st.text(max_size=200),
    resource=st.text(max_size=20),
    action=st.text(max_size=5),
    min_revision=st.integers(0, 1 << 62),
)


@given(st.lists(CHECKS, max_size=5))
def test_a_batch_is_split_as_it_was_put_together(checks: list[pb.CheckRequest]) -> None:
    data = pb.BatchCheckRequest(checks=checks).SerializeToString()
    parts = batches.split(data, 1000)
    assert parts is not None
    assert [pb.CheckRequest.FromString(part) for part in parts] == checks


@given(st.binary(max_size=30))
def test_what_is_split_is_what_protobuf_would_read(data: bytes) -> None:
    parts = batches.split(data, 1000)
    if parts is None:
        return
    try:
        read = [pb.CheckRequest.FromString(part) for part in parts]
    except Exception:  # noqa: BLE001 - protobuf's own error has several names
        return
    assert list(pb.BatchCheckRequest.FromString(data).checks) == read


@given(st.lists(st.builds(pb.CheckResponse, message=st.text(max_size=20_000), revision=st.integers(0, 9)), max_size=4))
def test_answers_are_put_together_as_protobuf_would(responses: list[pb.CheckResponse]) -> None:
    expected = pb.BatchCheckResponse(results=[pb.BatchCheckResult(response=response) for response in responses])
    serialized = [response.SerializeToString() for response in responses]
    assert b"".join(batches.head(len(each)) + each for each in serialized) == expected.SerializeToString()
