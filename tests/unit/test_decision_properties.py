"""What holds for every spec, key, role and path: tried on generated ones, against naive oracles of our own.

The oracles know patterns as regular expressions over the text of a path, and nothing of the product's code.
"""

import hmac
import re
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from gatekey.core import grants as g
from gatekey.core.decisions import CompiledSpec, KeySnapshot, Owner, PrincipalKind, Reason, Request, decide
from gatekey.core.errors import InvalidRequest
from gatekey.core.grants import Grant, GrantSet, covers, parse_action, parse_path, parse_pattern
from gatekey.core.names import format_key_id, new_key_uid, parse_key_id
from gatekey.core.secrets import (
    ALPHABET,
    CHECKSUM_CHARS,
    RANDOM_CHARS,
    Keyring,
    checksum,
    is_well_formed,
    new_secret,
)
from gatekey.core.specs import (
    AccessMode,
    Collection,
    CredentialHeader,
    KeyKind,
    Lifetime,
    MachineUserPolicy,
    ProductSpec,
    PublishableKeyPolicy,
    RestrictedPolicy,
    RestrictedScope,
    Role,
    SecretKeyPolicy,
)
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

# A busy machine is no failure.
many = settings(deadline=None, max_examples=300)
some = settings(deadline=None, max_examples=100)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TENANT = "north"

# Few, short and alike: so that they meet.
WORDS = ["a", "b", "ab"]
ACTIONS = ["read", "write", "reads"]

words = st.sampled_from(WORDS)
segments = st.sampled_from(["*", *WORDS])
patterns = st.one_of(
    st.just("*"), st.lists(segments, min_size=1, max_size=2).map("/".join), st.lists(segments, min_size=3).map("/".join)
)
grants = st.builds(
    Grant, patterns, st.lists(st.sampled_from(["*", *ACTIONS]), min_size=1, max_size=2, unique=True).map(tuple)
)
few_grants = st.lists(grants, max_size=3).map(tuple)
some_grants = st.lists(grants, min_size=1, max_size=3).map(tuple)
collections = st.lists(words, min_size=1, max_size=3).map("/*/".join)
paths = st.lists(words, min_size=1, max_size=6).map(tuple)
actions = st.sampled_from(ACTIONS)


@st.composite
def product_specs(draw: st.DrawFn) -> ProductSpec:
    """A spec whose parts fit together, with whatever grants."""
    modes = draw(st.lists(st.sampled_from(AccessMode), min_size=1, max_size=3, unique=True))
    ids = draw(st.lists(collections, min_size=1, max_size=5, unique=True))
    return ProductSpec(
        product="product",
        collections=tuple(
            Collection(pattern, tuple(draw(st.lists(actions, min_size=1, max_size=3, unique=True)))) for pattern in ids
        ),
        read_actions=tuple(draw(st.lists(actions, min_size=1, max_size=2, unique=True))),
        roles=(
            Role("owner", (Grant("*", ("*",)),), owner=True),
            Role("first", draw(few_grants)),
            Role("second", draw(few_grants)),
        ),
        secret_keys=SecretKeyPolicy(
            "p_",
            tuple(modes),
            modes[0],
            RestrictedPolicy(RestrictedScope.RESOURCES, draw(st.one_of(some_grants, st.just((Grant("*", ("*",)),))))),
        ),
        publishable_keys=PublishableKeyPolicy("pub_", draw(some_grants)) if draw(st.booleans()) else None,
        machine_users=MachineUserPolicy(draw(st.sampled_from(["owner", "first", "second"])), Lifetime.BOUND_TO_KEYS)
        if draw(st.booleans())
        else None,
        credential=CredentialHeader("authorization", "Bearer"),
    )


# The last role is one that the spec does not have.
owners = st.one_of(
    st.sampled_from(["owner", "first", "second", "gone"]).map(lambda role: Owner(PrincipalKind.MEMBER, "person", role)),
    st.just(Owner(PrincipalKind.MACHINE_USER, "robot", None)),
)


@st.composite
def snapshots(draw: st.DrawFn) -> KeySnapshot:
    """A key with nothing against it: only permissions decide."""
    spec = draw(product_specs())
    kind = draw(st.sampled_from([KeyKind.SECRET, KeyKind.SECRET, KeyKind.SECRET, KeyKind.PUBLISHABLE]))
    assert spec.secret_keys is not None
    # Twice those that are offered.
    modes = [*spec.secret_keys.modes, *AccessMode]
    mode = draw(st.sampled_from(modes)) if kind is KeyKind.SECRET else None
    return KeySnapshot(
        compiled=CompiledSpec(spec),
        tenant=TENANT,
        tenant_suspended=False,
        tenant_deleted=False,
        key_id=format_key_id(uuid.UUID(int=1)),
        kind=kind,
        mode=mode,
        grants=GrantSet.of(draw(some_grants)) if mode is AccessMode.RESTRICTED else GrantSet(()),
        owner=None if kind is KeyKind.PUBLISHABLE else draw(owners),
        key_revoked=False,
        key_disabled=False,
        expire_time=draw(st.sampled_from([None, NOW + timedelta(microseconds=1)])),
    )


@st.composite
def requests(draw: st.DrawFn, spec: ProductSpec) -> Request:
    """A question, mostly about resources and actions that the spec declares."""
    action = draw(actions)
    if draw(st.sampled_from([True, True, True, True, False])):
        collection = draw(st.sampled_from(spec.collections))
        action = draw(st.sampled_from([*collection.actions, action]))
        path = tuple(draw(words) if segment == "*" else segment for segment in collection.pattern.split("/"))
        path += (draw(words),) if draw(st.booleans()) else ()
    else:
        path = draw(paths)
    return Request(path, action, draw(st.sampled_from([None, TENANT])))


# ---------------------------------------------------------------- the oracle


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern covers a path, as a regular expression over its text."""
    if pattern == "*":
        return True
    expression = "/".join("[^/]+" if segment == "*" else re.escape(segment) for segment in pattern.split("/"))
    return re.fullmatch(f"{expression}(/.*)?", path) is not None


def gives(given_grants: Iterable[Grant], path: str, action: str) -> bool:
    """Whether any of the grants gives the action."""
    return any(
        matches(grant.resource, path) and ("*" in grant.actions or action in grant.actions) for grant in given_grants
    )


def is_declared(spec: ProductSpec, path: str, action: str) -> bool:
    """Whether the spec declares the action on the path: a collection, or one item of it and nothing below."""
    return any(
        re.fullmatch(collection.pattern.replace("*", "[^/]+") + "(/[^/]+)?", path) and action in collection.actions
        for collection in spec.collections
    )


def key_gives(snapshot: KeySnapshot, path: str, action: str) -> bool:
    """Whether the key gives the action: its kind, its mode, its own grants, and the spec as it is."""
    spec, compiled = snapshot.compiled.spec, snapshot.compiled.spec.secret_keys
    if snapshot.kind is KeyKind.PUBLISHABLE:
        return spec.publishable_keys is not None and gives(spec.publishable_keys.grants, path, action)
    assert compiled is not None
    assert compiled.restricted is not None
    own = [Grant("/".join(pattern), tuple(given)) for pattern, given in snapshot.grants.rules]
    by_mode = {
        AccessMode.ALL: True,
        AccessMode.READ_ONLY: action in spec.read_actions,
        AccessMode.RESTRICTED: gives(own, path, action) and gives(compiled.restricted.grantable, path, action),
    }
    return snapshot.mode is not None and snapshot.mode in compiled.modes and by_mode[snapshot.mode]


def role_gives(snapshot: KeySnapshot, path: str, action: str) -> bool:
    """Whether the owner's role gives the action; there is no owner to limit a publishable key."""
    if snapshot.kind is KeyKind.PUBLISHABLE:
        return True
    spec, owner = snapshot.compiled.spec, snapshot.owner
    assert owner is not None
    role = owner.role
    if owner.kind is PrincipalKind.MACHINE_USER:
        role = spec.machine_users.role if spec.machine_users else None
    return any(gives(known.grants, path, action) for known in spec.roles if known.role == role)


# ---------------------------------------------------------------- decisions


@pytest.mark.slow
@many
@given(st.data())
def test_allowed_is_exactly_declared_and_key_and_role(data: st.DataObject) -> None:
    """(b) Nothing outside what the key and the role both give is allowed, and nothing inside is denied."""
    snapshot = data.draw(snapshots())
    for request in data.draw(st.lists(requests(snapshot.compiled.spec), min_size=5, max_size=5)):
        path = "/".join(request.path)
        declared = is_declared(snapshot.compiled.spec, path, request.action)
        key, role = key_gives(snapshot, path, request.action), role_gives(snapshot, path, request.action)
        reason = decide(snapshot, request, NOW).reason
        event(reason.name)
        assert (reason is Reason.ALLOWED) == (declared and key and role)
        if declared and reason is not Reason.ALLOWED:
            assert reason is (Reason.OWNER_PERMISSION_MISSING if key else Reason.KEY_PERMISSION_MISSING)


@pytest.mark.slow
@many
@given(st.data())
def test_more_grants_never_deny(data: st.DataObject) -> None:
    """(a) What fewer grants allowed, more allow: grants of the key, its role, the publishable keys, the grantable."""
    snapshot = data.draw(snapshots())
    spec = snapshot.compiled.spec
    more = data.draw(some_grants)
    assert spec.secret_keys is not None
    assert spec.secret_keys.restricted is not None
    published = spec.publishable_keys
    generous = replace(
        spec,
        roles=tuple(replace(role, grants=more + role.grants) for role in spec.roles),
        secret_keys=replace(
            spec.secret_keys,
            restricted=replace(spec.secret_keys.restricted, grantable=more + spec.secret_keys.restricted.grantable),
        ),
        publishable_keys=replace(published, grants=more + published.grants) if published else None,
    )
    compiled, own = CompiledSpec(generous), GrantSet((*GrantSet.of(more).rules, *snapshot.grants.rules))
    wider = [
        replace(snapshot, grants=own),
        replace(snapshot, compiled=compiled),
        replace(snapshot, grants=own, compiled=compiled),
    ]
    for request in data.draw(st.lists(requests(spec), min_size=5, max_size=5)):
        before = decide(snapshot, request, NOW).allowed
        after = [decide(it, request, NOW).allowed for it in wider]
        event(f"{before} -> {after}")
        assert all(after) or not before


@some
@given(st.data(), st.text(min_size=1, max_size=8).filter(lambda text: text != TENANT))
@example(None, "North")
@example(None, "nort")
@example(None, "northern")
def test_other_tenant_is_never_allowed(data: st.DataObject | None, other: str) -> None:
    """(c) Whatever a key may do in its own tenant, it may do nothing in another."""
    snapshot = data.draw(snapshots()) if data else _powerful(_SPEC)
    request = data.draw(requests(snapshot.compiled.spec)) if data else Request(("a",), "read")
    assert decide(snapshot, replace(request, tenant=other), NOW).reason is Reason.TENANT_MISMATCH


@pytest.mark.slow
@some
@given(product_specs(), product_specs(), st.data())
def test_other_product_is_never_allowed(ours: ProductSpec, theirs: ProductSpec, data: st.DataObject) -> None:
    """(c) The most powerful key of one product opens what that declares, and nothing that only another does."""
    for request in data.draw(st.lists(requests(theirs), min_size=5, max_size=5)):
        path = "/".join(request.path)
        in_ours, in_theirs = (is_declared(spec, path, request.action) for spec in (ours, theirs))
        event(f"declared by us: {in_ours}, by them: {in_theirs}")
        assert decide(_powerful(theirs), request, NOW).allowed == in_theirs
        assert decide(_powerful(ours), request, NOW).allowed == in_ours


FAULTS: list[tuple[dict[str, Any], Reason]] = [
    ({"key_revoked": True}, Reason.KEY_REVOKED),
    ({"key_disabled": True}, Reason.KEY_DISABLED),
    ({"expire_time": NOW}, Reason.KEY_EXPIRED),
    ({"expire_time": NOW - timedelta(days=1)}, Reason.KEY_EXPIRED),
    ({"tenant_suspended": True}, Reason.TENANT_SUSPENDED),
    ({"tenant_deleted": True}, Reason.TENANT_DELETED),
]


@pytest.mark.slow
@many
@given(st.data(), st.sets(st.integers(0, len(FAULTS) - 1), min_size=1))
def test_fault_is_never_allowed(data: st.DataObject, chosen: set[int]) -> None:
    """(d) A revoked, disabled or expired key, or one of a suspended or deleted tenant: the first fault is named."""
    snapshot = data.draw(snapshots())
    request = data.draw(requests(snapshot.compiled.spec))
    for index in chosen:
        snapshot = replace(snapshot, **FAULTS[index][0])
    assert decide(snapshot, request, NOW).reason is FAULTS[min(chosen)][1]


@pytest.mark.parametrize(("before", "allowed"), [(0, False), (1, True), (-1, False)])
def test_expiry_is_the_first_moment_that_is_too_late(before: int, allowed: bool) -> None:
    """A key works until its time, and no longer at it."""
    snapshot = replace(_powerful(_SPEC), expire_time=NOW + timedelta(microseconds=before))
    assert decide(snapshot, Request(("a",), "read"), NOW).allowed == allowed


def _powerful(spec: ProductSpec) -> KeySnapshot:
    """A key of the mode ALL, of an owner, with nothing against it."""
    assert spec.secret_keys is not None
    offering = replace(spec, secret_keys=replace(spec.secret_keys, modes=tuple(AccessMode)))
    owner = Owner(PrincipalKind.MEMBER, "person", "owner")
    return KeySnapshot(
        CompiledSpec(offering),
        TENANT,
        False,
        False,
        "key",
        KeyKind.SECRET,
        AccessMode.ALL,
        g.NOTHING,
        owner,
        False,
        False,
        None,
    )


_SPEC = ProductSpec(
    product="product",
    collections=(Collection("a", ("read",)),),
    roles=(Role("owner", (Grant("*", ("*",)),), owner=True),),
    secret_keys=SecretKeyPolicy("p_", (AccessMode.ALL,), AccessMode.ALL),
    credential=CredentialHeader("authorization"),
)


# ---------------------------------------------------------------- grants


@many
@given(patterns, paths)
@example("a", ("ab",))
@example("ab", ("a", "b"))
@example("*/b", ("b",))
def test_covers_agrees_with_regular_expressions(pattern: str, path: g.Path) -> None:
    """(e) Segment by segment is what a regular expression over the text says."""
    assert covers(tuple(pattern.split("/")), path) == matches(pattern, "/".join(path))


@st.composite
def sets_of_grants(draw: st.DrawFn) -> tuple[list[Grant], list[Grant]]:
    """Two sets, the second made of parts of the first, so that the first contains it; or nearly so."""
    wide = draw(st.lists(grants, min_size=1, max_size=3))
    narrow = []
    for grant in draw(st.lists(st.sampled_from(wide), min_size=1, max_size=3)):
        path = [draw(words) if part == "*" and draw(st.booleans()) else part for part in grant.resource.split("/")]
        path += draw(st.lists(segments, max_size=2))
        given_actions = grant.actions
        spoil = draw(st.sampled_from(["nothing", "nothing", "segment", "length", "actions"]))
        if spoil == "segment":
            path[draw(st.integers(0, len(path) - 1))] = draw(segments)
        elif spoil == "length":
            path = path[:-1] or path
        elif spoil == "actions":
            given_actions = (draw(st.sampled_from([*ACTIONS, "*"])), *given_actions)
        narrow.append(Grant("/".join(path), given_actions))
    return wide, narrow


@pytest.mark.slow
@many
@given(sets_of_grants(), st.lists(paths, min_size=1, max_size=8), st.data())
def test_contains_is_sound(sets: tuple[list[Grant], list[Grant]], asked: list[g.Path], data: st.DataObject) -> None:
    """(e) If one set contains another, then whatever the other allows, the one allows."""
    wide, narrow = sets
    contained = GrantSet.of(wide).contains(GrantSet.of(narrow))
    event(f"contained: {contained}")
    # Paths that the narrow set covers, besides those that it may not.
    asked += [
        tuple(data.draw(words) if segment == "*" else segment for segment in grant.resource.split("/"))
        for grant in narrow
    ]
    for path in asked:
        for action in [*ACTIONS, "undeclared"]:
            if gives(narrow, "/".join(path), action):
                assert gives(wide, "/".join(path), action) or not contained


@some
@given(sets_of_grants())
def test_contains_finds_each_grant_inside_one(sets: tuple[list[Grant], list[Grant]]) -> None:
    """(e) A set contains itself and each part of itself; a wildcard is inside nothing narrower."""
    wide, narrow = sets
    assert GrantSet.of(wide).contains(GrantSet.of(wide))
    assert g.EVERYTHING.contains(GrantSet.of(narrow))
    assert not g.NOTHING.contains(GrantSet.of(narrow))
    made_of_parts = [grant for grant in narrow if any(_is_part(grant, of) for of in wide)]
    assert GrantSet.of(wide).contains(GrantSet.of(made_of_parts))


def _is_part(grant: Grant, of: Grant) -> bool:
    """Whether a grant is inside another one, with its wildcards read as a segment that nothing else names."""
    inside = matches(of.resource, grant.resource.replace("*", "\N{WHITE STAR}"))
    return inside and ("*" in of.actions or set(grant.actions) <= set(of.actions))


@many
@given(few_grants, paths, paths)
def test_touches_is_what_some_path_shows(given_grants: tuple[Grant, ...], path: g.Path, below: g.Path) -> None:
    """A set touches a path exactly if it covers the path or something below it."""
    touched = GrantSet.of(given_grants).touches(path)
    event(f"touched: {touched}")
    text = "/".join(path)
    if any(matches(grant.resource, f"{text}/{'/'.join(below)}") for grant in given_grants):
        assert touched
    # A witness for each grant: the path, and below it what the rest of the pattern names.
    witnesses = [
        "/".join([*path, *(segment.replace("*", "x") for segment in grant.resource.split("/")[len(path) :])])
        for grant in given_grants
    ]
    assert touched == any(matches(grant.resource, text) for grant, text in zip(given_grants, witnesses, strict=True))


# ---------------------------------------------------------------- paths


path_ids = st.text(st.sampled_from("aZ09._~!$&'()+,;=:@%-"), min_size=1, max_size=8).filter(
    lambda text: text not in {".", ".."}
)


@many
@given(st.lists(path_ids, min_size=1, max_size=g.MAX_SEGMENTS))
def test_paths_round_trip(segments: list[str]) -> None:
    """(f) A path is its segments, unchanged: nothing is decoded, resolved or folded."""
    assert parse_path("/".join(segments), "resource") == tuple(segments)
    assert parse_pattern("/".join(segments), "resource") == tuple(segments)


@many
@given(
    st.one_of(
        st.text(max_size=30),
        st.text(st.sampled_from("ab/.*%\\\x00\x7f\n\t é\u202e#?"), max_size=12),
        st.lists(st.sampled_from(["a", "..", ".", "", "*", "é", " ", "\x1f", "%2e"]), min_size=1, max_size=5).map(
            "/".join
        ),
    )
)
@example("a/..")
@example("a\n")
@example("a//b")
def test_what_is_accepted_is_plain(text: str) -> None:
    """(f) No `..`, no empty segment, no wildcard, no control and no non-ASCII character is ever accepted."""
    try:
        path = parse_path(text, "resource")
    except InvalidRequest as error:
        event(f"refused: {error.reason}")
        return
    event("accepted")
    assert "/".join(path) == text
    assert re.fullmatch(r"[!-~]+", text)
    assert not set(text) & set('*\\?#"<>[]^`{|}')
    assert not {"", ".", "..", "*"} & set(path)


@pytest.mark.parametrize("text", ["a" * 257, "/".join(["a"] * 17), "/".join(["a" * 250] * 5), "a/" + "é" * 3])
def test_long_and_foreign_paths_are_refused(text: str) -> None:
    """(f) The limits of a segment, of their number, and of the whole."""
    with pytest.raises(InvalidRequest):
        parse_path(text, "resource")
    with pytest.raises(InvalidRequest):
        parse_pattern(text, "resource")


@pytest.mark.parametrize("text", ["a" * 256, "/".join(["a"] * 16), "/".join(["a" * 255] * 4)])
def test_longest_paths_are_accepted(text: str) -> None:
    """(f) And not one less than the limits."""
    assert "/".join(parse_path(text, "resource")) == text


@some
@given(st.one_of(st.text(max_size=5), st.text(st.sampled_from("azAZ09_.:-*/ \n"), max_size=70)))
@example("*")
@example("read\n")
@example("")
@example("a" * 65)
def test_actions_are_plain_names(text: str) -> None:
    """What is accepted as an action is a short ASCII name, and never the wildcard unless that is asked for."""
    try:
        accepted = parse_action(text, "action")
    except InvalidRequest:
        assert not re.fullmatch(r"[a-z]{1,64}", text)
        return
    assert accepted == text
    assert re.fullmatch(r"[a-z][!-~]{0,63}", text)
    assert "*" not in text


# ---------------------------------------------------------------- secrets


prefixes = st.from_regex(r"([a-z0-9]{1,5}[_-]){1,3}", fullmatch=True)


@some
@given(prefixes)
def test_new_secrets_are_well_formed(prefix: str) -> None:
    """(f) The prefix, 32 random characters and 6 of the checksum; no two alike."""
    secret = new_secret(prefix)
    assert is_well_formed(secret)
    assert secret.startswith(prefix)
    tail = secret[len(prefix) :]
    assert len(tail) == RANDOM_CHARS + CHECKSUM_CHARS
    assert set(tail) <= set(ALPHABET)
    assert new_secret(prefix) != secret


@some
@given(prefixes)
def test_checksum_is_crc_32_in_base_62(prefix: str) -> None:
    """(f) All 32 bits, of all that stands before it: others have to be able to compute it."""
    secret = new_secret(prefix)
    assert _number(secret[-CHECKSUM_CHARS:]) == zlib.crc32(secret[:-CHECKSUM_CHARS].encode())
    # The value that is given with every definition of CRC-32.
    assert _number(checksum("123456789")) == 0xCBF43926


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 62 + ALPHABET.index(digit)
    return number


# A CRC of 32 bits finds every error within 32 neighbouring bits, and its six digits tell all of its
# values apart. So every change of one character is found, and every swap of two neighbours that are
# both before or both within the checksum. A character more or less may by chance not be found.


@many
@given(prefixes, st.data(), st.characters())
def test_one_changed_character_is_found(prefix: str, data: st.DataObject, character: str) -> None:
    """(f) A secret with one character changed is not well formed, wherever and into whatever it is changed."""
    secret = new_secret(prefix)
    position = data.draw(st.integers(0, len(secret) - 1))
    assume(secret[position] != character)
    assert not is_well_formed(secret[:position] + character + secret[position + 1 :])


def test_every_changed_character_is_found() -> None:
    """(f) All positions, all characters of the alphabet."""
    secret = new_secret("hey_")
    changed = {
        secret[:position] + character + secret[position + 1 :]
        for position in range(len(secret))
        for character in f"{ALPHABET}_- "
    } - {secret}
    assert len(changed) > 40 * 60
    assert not any(is_well_formed(text) for text in changed)


@some
@given(prefixes, st.data())
def test_swapped_neighbours_are_found(prefix: str, data: st.DataObject) -> None:
    """(f) Two characters in the wrong order are found, but for the two on either side of the checksum's start."""
    secret = new_secret(prefix)
    position = data.draw(st.integers(0, len(secret) - 2).filter(lambda at: at != len(secret) - CHECKSUM_CHARS - 1))
    swapped = secret[:position] + secret[position + 1] + secret[position] + secret[position + 2 :]
    assume(swapped != secret)
    assert not is_well_formed(swapped)


# HMAC fills short keys up with zeros, so that keys which differ only by these are one key.
two_peppers = st.lists(
    st.binary(min_size=32, max_size=48), min_size=2, max_size=2, unique_by=lambda pepper: pepper.rstrip(b"\0")
)


@some
@given(prefixes, two_peppers)
def test_digests_differ_by_pepper(prefix: str, peppers: list[bytes]) -> None:
    """(f) Under another pepper a secret has another digest; a ring finds what any of its peppers sealed."""
    old, new = peppers
    secret = new_secret(prefix)
    before, after, both = Keyring({1: old}), Keyring({2: new}), Keyring({1: old, 2: new})
    assert before.seal(secret).digest == hmac.digest(old, secret.encode(), "sha256")
    assert before.seal(secret).digest != after.seal(secret).digest
    assert both.seal(secret) == after.seal(secret)
    assert both.digests(secret) == (after.seal(secret).digest, before.seal(secret).digest)
    assert before.digests(secret) != before.digests(new_secret(prefix))


@some
@given(prefixes)
def test_what_is_stored_does_not_tell_the_secret(prefix: str) -> None:
    """(f) The hint is the prefix and four characters; a text that can be no secret has no digest."""
    secret = new_secret(prefix)
    sealed = Keyring({1: b"0" * 32}).seal(secret)
    assert sealed.hint == secret[: len(prefix) + 4]
    assert len(sealed.digest) == 32
    assert Keyring({1: b"0" * 32}).digests(secret + "0" * 40) == ()


# ---------------------------------------------------------------- key ids


@many
@given(st.uuids())
@example(uuid.UUID(int=0))
@example(uuid.UUID(int=(1 << 128) - 1))
def test_key_ids_round_trip(uid: uuid.UUID) -> None:
    """(f) An id is a key's UUID and no other's."""
    text = format_key_id(uid)
    assert parse_key_id(text) == uid
    assert parse_path(f"apiKeys/{text}", "resource") == ("apiKeys", text)


@many
@given(st.one_of(st.text(max_size=40), st.from_regex(r"key_[0-8][0-9a-hjkmnp-tv-z]{25}[A-Z0\n]?", fullmatch=True)))
@example("key_8" + "0" * 25)
@example("key_0" + "0" * 25 + "\n")
@example("KEY_" + "0" * 26)
@example("key_" + "0" * 25 + "A")
def test_a_uuid_has_one_id(text: str) -> None:
    """(f) No second spelling of an id is read."""
    uid = parse_key_id(text)
    event(f"read: {uid is not None}")
    assert uid is None or format_key_id(uid) == text


@some
@given(st.tuples(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 74) - 1)), st.integers(1, 1 << 40), st.integers(0))
def test_key_ids_are_in_the_order_of_creation(first: tuple[int, int], later: int, bits: int) -> None:
    """(f) The id of a key made a millisecond later sorts after it, and each is a UUID of version 7."""
    unix_ms, random_bits = first
    assume(unix_ms + later < 1 << 48)
    earlier_uid, later_uid = new_key_uid(unix_ms, random_bits), new_key_uid(unix_ms + later, bits % (1 << 74))
    assert earlier_uid < later_uid
    assert format_key_id(earlier_uid) < format_key_id(later_uid)
    assert (earlier_uid.version, earlier_uid.variant) == (7, uuid.RFC_4122)
