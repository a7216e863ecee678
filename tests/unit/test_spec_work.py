"""What it costs to refuse, to validate and to compile a spec, and to compare grants: bounded, whatever is sent.

Work is counted by the calls of Python functions, which do not depend on how fast the machine is.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from gatekey.core import grants as g
from gatekey.core import specs
from gatekey.core.decisions import CompiledSpec
from gatekey.core.errors import MAX_VIOLATIONS, InvalidRequest
from gatekey.core.grants import Grant, GrantSet
from gatekey.core.specs import AccessMode, KeyKind, KeyOffer, KeyOwner
from gatekey.v1 import product_spec_pb2, types_pb2
from gatekey.wire.conversions import read_key_grants
from gatekey.wire.specs import read_spec, refuse_too_large
from gatekey_server.rpc import errors

from tests.support.server import read_example


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called by some work."""
    count = 0

    def profile(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    except InvalidRequest:
        pass
    finally:
        sys.setprofile(None)
    return count


def spec_with(**fields: Any) -> product_spec_pb2.ProductSpec:
    """An example with something more."""
    spec = read_example("codeqr")
    for name, value in fields.items():
        getattr(spec, name).extend(value)
    return spec


def grants(number: int, *, deep: bool = False, actions: int = 1) -> list[Grant]:
    """Different grants, of which none covers another; `deep` ones differ at their ends alone."""
    below = "a/*/" * 7 if deep else ""
    return [Grant(f"{below}c{n}", tuple(f"a{m}" for m in range(actions))) for n in range(number)]


HUGE: dict[str, Callable[[], product_spec_pb2.ProductSpec]] = {
    "20,000 grants of a role": lambda: spec_with(
        roles=[product_spec_pb2.Role(role="r", grants=[types_pb2.Grant(resource="*", actions=["*"])] * 20_000)]
    ),
    "250,000 empty roles": lambda: spec_with(roles=[product_spec_pb2.Role()] * 250_000),
    "100,000 collections": lambda: spec_with(collections=[product_spec_pb2.Collection()] * 100_000),
    "100,000 actions of a collection": lambda: spec_with(
        collections=[product_spec_pb2.Collection(pattern="c", actions=["a"] * 100_000)]
    ),
    "200,000 read actions": lambda: spec_with(read_actions=["read"] * 200_000),
    "64 roles of 256 grants": lambda: spec_with(
        roles=[
            product_spec_pb2.Role(role=f"r{n}", grants=[types_pb2.Grant(resource="*", actions=["*"])] * 256)
            for n in range(61)
        ]
    ),
    "16,384 actions": lambda: spec_with(
        collections=[product_spec_pb2.Collection(pattern=f"c{n}", actions=["a"] * 64) for n in range(250)]
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_is_too_much_is_refused_before_it_is_read(name: str) -> None:
    """At most each of the lists is looked at that a valid spec could have, and none of what is in a longer one."""
    message = HUGE[name]()
    with pytest.raises(InvalidRequest) as refused:
        refuse_too_large(message)
    assert refused.value.reason == "SPEC_INVALID"
    assert len(refused.value.violations) == 1
    assert calls_of(lambda: refuse_too_large(message)) < 20_000


def test_a_spec_of_too_many_bytes_is_refused_by_its_size() -> None:
    message = spec_with(collections=[product_spec_pb2.Collection(pattern="c", display_name="x" * 300_000)])
    with pytest.raises(InvalidRequest) as refused:
        refuse_too_large(message)
    assert [violation.reason for violation in refused.value.violations] == ["SPEC_TOO_LARGE"]


def worst_spec() -> product_spec_pb2.ProductSpec:
    """As much of everything as a valid spec can have at once."""
    spec = read_example("codeqr")
    spec.ClearField("limits")
    while len(spec.collections) < specs.MAX_COLLECTIONS:
        pattern = "/*/".join([*(f"p{n}" for n in range(7)), f"c{len(spec.collections)}"])
        spec.collections.add(pattern=pattern, actions=[f"a{n}" for n in range(8)])
    spare = specs.MAX_SPEC_GRANTS - 60
    for number in range(spec_roles := 8):
        role = spec.roles.add(role=f"r{number}")
        for n in range(min(specs.MAX_GRANTS, spare // spec_roles)):
            middle = "/*/".join(f"p{n}" for n in range(7))
            role.grants.add(
                resource=f"{middle}/i/c{8 + (number * 31 + n) % 240}", actions=["a0", "a1", "a2"][: 1 + n % 3]
            )
    return spec


def test_the_worst_valid_spec_is_validated_and_compiled_in_linear_work() -> None:
    message = worst_spec()
    spec = read_spec(message, [])
    specs.validate(spec)
    entries = sum(len(role.grants) for role in spec.roles) * 4 + len(spec.collections) * 9
    assert calls_of(lambda: refuse_too_large(message)) < 10 * entries
    assert calls_of(lambda: read_spec(message, [])) < 10 * entries
    assert calls_of(lambda: specs.validate(spec)) < 60 * entries
    g._rule.cache_clear()
    assert calls_of(lambda: CompiledSpec(spec)) < 20 * entries
    assert calls_of(lambda: KeyOffer(spec)) < 40 * len(spec.collections) * 9


def test_comparing_grants_costs_no_product_of_their_numbers() -> None:
    """Of sets with ten times the grants, comparing costs about ten times as much, and not a hundred times."""

    def cost(number: int) -> int:
        wide, narrow = GrantSet.of(grants(number, deep=True)), GrantSet.of(grants(number, deep=True))
        return calls_of(lambda: wide.contains(narrow))

    assert cost(250) < 15 * cost(25)


def test_grants_of_a_key_are_judged_in_linear_work() -> None:
    spec = read_spec(worst_spec(), [])
    chosen = [Grant("links", (f"a{n % 64}",)) for n in range(specs.MAX_GRANTS)]
    assert calls_of(lambda: specs.validate_grants(spec, chosen, "grants")) < 100_000
    offer = KeyOffer(spec)
    given = KeyKind.SECRET, KeyOwner.MEMBER, AccessMode.RESTRICTED, chosen
    assert calls_of(lambda: list(offer.losses(*given))) < 50 * specs.MAX_GRANTS
    repeated = [Grant("links", ("read",))] * 90_000
    assert g.without_repetitions(repeated) == (Grant("links", ("read",)),)
    assert calls_of(lambda: g.without_repetitions(repeated)) < 10 * len(repeated)


def test_too_many_grants_of_a_key_are_refused_before_they_are_read() -> None:
    written = [types_pb2.Grant(resource="links", actions=["read"])] * 90_000
    for sent in (written, [types_pb2.Grant(resource="links", actions=["read"] * 100_000)]):
        with pytest.raises(InvalidRequest) as refused:
            read_key_grants(sent, "api_key.grants")
        assert refused.value.reason == "GRANTS_INVALID"
        assert calls_of(partial(read_key_grants, sent, "api_key.grants")) < 1_000


def test_of_many_problems_the_first_are_listed_and_the_rest_is_counted() -> None:
    message = spec_with(roles=[product_spec_pb2.Role(role="R")] * 60)
    spec = read_spec(message, [])
    with pytest.raises(InvalidRequest) as refused:
        specs.validate(spec)
    error = refused.value
    assert len(error.violations) == MAX_VIOLATIONS
    assert error.unlisted == 60 - MAX_VIOLATIONS
    assert f"60 problems, {error.unlisted} of which are not listed" in error.message
    assert error.below("spec").unlisted == error.unlisted
    assert len(errors.details(error)) < 4400
    listed = errors._bad_request(error, 4000)
    assert 0 < len(listed.field_violations) <= MAX_VIOLATIONS


@pytest.mark.parametrize(
    "resource",
    ["*", "links", "links/*", "*/abc", "a/*/b", "", "/", "links/", "/links", "a//b", ".", "a/..", "a/.b", "a*", "**",
     "*a/b", "links\n", "é", "a b", "a/b" * 8, "/".join(["a"] * 17), "a" * 257, "a/" * 600 + "b"],
)  # fmt: skip
def test_the_quick_look_at_a_pattern_is_as_strict_as_the_one_that_tells(resource: str) -> None:
    try:
        g.parse_pattern(resource, "resource")
        expected = True
    except InvalidRequest:
        expected = False
    assert g.is_well_formed(Grant(resource, ("read",))) == expected
    assert not g.is_well_formed(Grant(resource, ()))
    assert not g.is_well_formed(Grant(resource, ("read", "Read")))
