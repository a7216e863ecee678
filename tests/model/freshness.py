"""The protocol of `docs/freshness.md` as a machine of states, small enough to be explored exhaustively.

A state is immutable; `steps` yields every step that may come next, whoever takes it. A process that is stopped, killed,
or slow needs no states of its own: its next step does not come while time and all others go on. Time has no beginning:
only ages are kept, as far as it matters, so that there are finitely many states and no limit on how long a run is.

What each step is in the code:

- a mutation *commits*, with its revision: the trigger `take_revision`, and `commands/mutations.py:run`;
- it *returns*: `freshness/propagation.py`. The reading of the table `process` and the return are one step, for whatever
  lies between them only makes fewer checks fall under the promise;
- a process *asks* (the clock is read, the poll is on its way), the poll is *answered* (`changes_poll`: one statement
  with its write), the process *applies* and *renews*, or *registers*: `ChangePoller._follow`. It *loses* a
  poll when its link breaks;
- it *leaves*: `ChangePoller.leave`; a new process then takes its place;
- somebody *sees* its row and *removes* it: `ChangePoller._remove_the_dead`. Who does so is nobody in particular;
- a load is *sent*, *read*, and *arrives*: `freshness/loads.py` and `freshness/snapshot_source.py:SnapshotSource._load`;
- a check is answered *from memory*: `SnapshotSource.recall` and `InvalidationIndex.is_current`. It starts and is
  answered in one step: had it started before, it would be promised less, and all is looked at at once;
- a *failover* loses the newest commits, and what was said after them in the rows of `process`;
- a *restore* does the same within a lease, on the same server, as when a dump is restored and renamed into place. What
  follows gets the same numbers, unless the copy is noticed: `take_position` and `take_revision` in `0005_positions.py`;
- a check with `min_revision` is answered from memory as soon as a mutation is committed.

All checks are about one snapshot. Sets are tuples of bits in an integer: bit i stands for mutation i.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_FEW_POLLS = 1
"""How far the polls in a row are counted, without `NO_TWO_POLLS_ALIKE`."""


class Guard(enum.Enum):
    """What makes the protocol safe, one by one. The values say what is done without it."""

    LEASE_AT_EACH_HIT = "a process answers from memory without a look at its lease"
    CLOCK_BEFORE_POLL = "a lease begins when the poll has arrived"
    APPLIED_BEFORE_LEASE = "a lease is renewed before the changes are applied"
    REVISION_OF_SNAPSHOT = "a snapshot is kept as of the revision that the process has applied when it arrives"
    LOCK_TO_COMMIT = "the revision is taken without a lock that lasts to the commit"
    NO_LEASE_WITHOUT_ROW = "a process takes up a lease from a poll that did not find it registered"
    READ_AFTER_COMMIT = "a mutation may return by a reading of the processes that began before its commit"
    APPLIED_BEFORE_ACKNOWLEDGED = "a poll acknowledges what it is answered"
    UNCHANGED_FOR_A_LEASE = "a process is removed at once"
    NO_TWO_POLLS_ALIKE = "polls are counted in each row from naught, and the same number is taken for the same poll"
    LEASE_ENDS_BEFORE_ROW = "a process that leaves goes on answering for as long as its lease lasts"
    FALLBACK_AFTER_LEASE = "a mutation returns whenever it likes"
    OWN_PROCESS_APPLIES = "a mutation does not wait for its own process"
    REPETITIONS_WAIT = "a mutation that finds everything done returns at once"
    NO_OLD_LOAD_JOINED = "a check joins a load that was sent before it"
    STAMPS = "a history is known by its numbers alone"
    ACKNOWLEDGED_IN_THIS_HISTORY = "a poll acknowledges a revision that the database does not know"
    OWN_POSITION = "a mutation waits for its own process by the number of its revision alone"
    LOADED_IN_THIS_HISTORY = "what was loaded counts by the number of its revision alone"
    COPY_NOTICED_BY_ALL = "a mutation that changes nothing does not notice that it is the first in a copy"
    COPY_BEYOND_ORIGINAL = "the numbers in a copy go on from those of the dump"
    COPY_WAITS_A_LEASE = "mutations in a copy wait only for the processes that the dump knows"
    NOTHING_NEWER_SURVIVES_A_LAPSE = "what was loaded and not yet applied counts as right after a time without a lease"

    # Not of the protocol, but what it rests on.
    FAILOVER_TAKES_A_LEASE = "a failover is over before the leases of the lost history are"
    FORMER_PRIMARY_IS_FENCED = "a former primary goes on answering loads"

    # By identity, which is faster than by name.
    __hash__ = object.__hash__


class Kind(enum.Enum):
    """What a mutation does."""

    CHANGES = "changes the snapshot"
    CHANGES_ANOTHER = "changes something else"
    REPEATS = "finds everything as it should be, or is a repetition by `request_id`"


class Restores(enum.Enum):
    """What happens when a dump is restored."""

    NEVER = "none is"
    UNNOTICED = "nothing tells the copy from the original; the dump knows all processes"
    NOTICED = "the copy is noticed; processes may have registered after the dump"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is explored."""

    guards: frozenset[Guard] = frozenset(Guard)
    mutations: tuple[Kind, ...] = (Kind.CHANGES,)
    lease: int = 2
    """How many ticks it lasts. What is older than that is all the same."""
    processes: int = 1
    """How many answer checks. Any others are only waited for, and that can only delay a return."""
    watchers: int = 1
    """How many may remove a process."""
    runner: int | None = None
    """Which process runs the mutations; None: one that answers no checks."""
    fails_over: bool = False
    restores: Restores = Restores.NEVER
    leaves: bool = False

    @cached_property
    def changing(self) -> int:
        """The mutations that change the snapshot."""
        return sum(1 << i for i, kind in enumerate(self.mutations) if kind is Kind.CHANGES)

    def without(self, guard: Guard) -> "Scenario":
        return replace(self, guards=self.guards - {guard})


class Position(NamedTuple):
    """A place in a history. The stamp is the mutation that made it."""

    revision: int
    stamp: int


NOWHERE = Position(-1, -1)
BEGINNING = Position(0, -1)


class Stage:
    """How far a mutation is. Plain numbers, for they are hashed millions of times."""

    IDLE = 0
    TAKEN = 1
    """It has its revision."""
    COMMITTED = 2
    """It waits."""
    RETURNED = 3
    LOST = 4


class Mutation(NamedTuple):
    stage: int = Stage.IDLE
    revision: int = 0
    stamp: int = -1
    """The mutation that took its revision: itself, unless it has changed nothing."""
    is_after_restore: bool = False
    """Processes may have leases that nobody here knows."""
    waited: int = 0
    promise: int = 0
    """What was committed when it was: a check that starts after its return must know of it."""
    forbids: int = 0
    """What a restore had undone when it was: such a check must know nothing of it."""


class KeySnapshot(NamedTuple):
    content: int
    """The mutations that it tells of."""
    verified: Position


class Load(NamedTuple):
    found: KeySnapshot | None = None
    """None: it has not reached the database."""
    is_kept: bool = True
    missing: int = 0
    """What those who wait for it were promised, and it does not tell of; all, until it has reached the database."""


class Answer(NamedTuple):
    head: Position
    changes: int
    """All that the process has not applied."""
    is_continuous: bool
    is_registered: bool


class Poll(NamedTuple):
    age: int
    answer: Answer | None = None
    is_applied: bool = False


class Process(NamedTuple):
    applied: Position = NOWHERE
    changes: int = 0
    """All that it has applied, or started from."""
    lease: int = 0
    poll: Poll | None = None
    snapshot: KeySnapshot | None = None
    load: Load | None = None


class Row(NamedTuple):
    acknowledged: int
    polls: int = 0
    since: int = 0
    """The revision at which it registered; only where a dump may not know it."""


class Sighting(NamedTuple):
    polls: int
    age: int = 0


class State(NamedTuple):
    mutations: tuple[Mutation, ...]
    processes: tuple[Process, ...]
    rows: tuple[Row | None, ...]
    sightings: tuple[tuple[Sighting | None, ...], ...]
    """By process and watcher."""
    reading: tuple[Row | None, ...] | None = None
    """An old reading of the rows; only without `READ_AFTER_COMMIT`."""
    former: KeySnapshot | None = None
    """What a former primary answers; only without `FORMER_PRIMARY_IS_FENCED`."""
    is_copy: bool = False
    """It was restored from a dump, and nobody has noticed."""
    noticed_for: int = -1
    """How long ago somebody did; -1: never."""


class Step(NamedTuple):
    what: str
    state: State
    is_stale: bool = False
    """A check was answered from older snapshots than it was promised."""


def start(scenario: Scenario) -> State:
    """Before anything has happened."""
    n = scenario.processes
    return State(
        (Mutation(),) * len(scenario.mutations),
        (Process(),) * n,
        (None,) * n,
        ((None,) * scenario.watchers,) * n,
    )


def steps(scenario: Scenario, state: State) -> Iterator[Step]:
    """Everything that may happen next."""
    yield Step("time passes", _after_a_tick(state, scenario.lease))
    for i in range(len(state.mutations)):
        yield from _mutation_steps(scenario, state, i)
    for p in range(len(state.processes)):
        yield from _feed_steps(scenario, state, p)
        yield from _watcher_steps(scenario, state, p)
        yield from _load_steps(scenario, state, p)
        yield from _memory_steps(scenario, state, p)
    if Guard.READ_AFTER_COMMIT not in scenario.guards:
        yield Step("the table of processes is read", state._replace(reading=state.rows))
    if scenario.fails_over:
        yield from _failovers(scenario, state)
    if scenario.restores is not Restores.NEVER:
        yield from _restores(scenario, state)


# ---------------------------------------------------------------- time


def _after_a_tick(state: State, lease: int) -> State:
    return state._replace(
        mutations=tuple(
            m._replace(waited=min(m.waited + 1, lease)) if m.stage == Stage.COMMITTED else m for m in state.mutations
        ),
        processes=tuple(
            p._replace(
                lease=max(p.lease - 1, 0),
                poll=p.poll and p.poll._replace(age=min(p.poll.age + 1, lease)),
            )
            for p in state.processes
        ),
        sightings=tuple(
            tuple(s and s._replace(age=min(s.age + 1, lease)) for s in of_one) for of_one in state.sightings
        ),
        noticed_for=state.noticed_for if state.noticed_for < 0 else min(state.noticed_for + 1, lease),
    )


# ---------------------------------------------------------------- the database's history


def _committed(state: State) -> int:
    return sum(1 << i for i, m in enumerate(state.mutations) if m.stage in (Stage.COMMITTED, Stage.RETURNED))


def _since(state: State, revision: int) -> int:
    return sum(1 << i for i in _bits(_committed(state)) if state.mutations[i].revision > revision)


def _last_change(scenario: Scenario, state: State, changes: int) -> int:
    """The revision at which the snapshot changed last."""
    return max((state.mutations[i].revision for i in _bits(changes & scenario.changing)), default=0)


def _numbered(state: State) -> int:
    """The mutations that have taken a revision."""
    return sum(1 << i for i, m in enumerate(state.mutations) if m.stamp == i)


def _head(state: State) -> Position:
    newest = BEGINNING
    for i in _bits(_committed(state) & _numbered(state)):
        newest = max(newest, Position(state.mutations[i].revision, i))
    return newest


def _is_known(scenario: Scenario, state: State, position: Position) -> bool:
    if position == BEGINNING:
        return True
    if Guard.STAMPS not in scenario.guards:
        return 0 <= position.revision <= _head(state).revision
    return position != NOWHERE and bool(_committed(state) >> position.stamp & 1)


def _bits(mutations: int) -> Iterator[int]:
    i = 0
    while mutations >> i:
        if mutations >> i & 1:
            yield i
        i += 1


# ---------------------------------------------------------------- mutations


def _mutation_steps(scenario: Scenario, state: State, i: int) -> Iterator[Step]:
    mutation, name = state.mutations[i], f"M{i}"

    def become(new: Mutation) -> State:
        return state._replace(mutations=_with(state.mutations, i, new))

    if i and scenario.mutations[i] is scenario.mutations[i - 1] and state.mutations[i - 1].stage == Stage.IDLE:
        # Which of two that are alike comes first is all the same.
        return
    match mutation.stage:
        case Stage.IDLE if scenario.mutations[i] is Kind.REPEATS and not _notices(scenario, state):
            head, promise = _head(state), _committed(state)
            forbids = _undone(scenario, state)
            if promise or forbids:
                is_after_restore = _is_after_restore(scenario, state)
                done = Mutation(Stage.COMMITTED, *head, is_after_restore, promise=promise, forbids=forbids)
                yield Step(f"{name} finds everything done at revision {head.revision}", become(done))
        case Stage.IDLE if state.is_copy:
            # What changes something always notices.
            beyond = Guard.COPY_BEYOND_ORIGINAL in scenario.guards and scenario.restores is Restores.NOTICED
            last = max(m.revision for m in state.mutations) if beyond else _head(state).revision
            if scenario.restores is Restores.NOTICED:
                state = state._replace(noticed_for=0)
            state = state._replace(is_copy=False)
            yield Step(
                f"{name} commits revision {last + 1}, the first in a copy",
                become(_commit(scenario, state, i, last + 1)),
            )
        case Stage.IDLE:
            in_progress = [m.revision for m in state.mutations if m.stage == Stage.TAKEN]
            revision = max([_head(state).revision, *in_progress]) + 1
            if Guard.LOCK_TO_COMMIT in scenario.guards:
                # The next one takes its own after this commit, and nobody sees anything in between.
                yield Step(f"{name} commits revision {revision}", become(_commit(scenario, state, i, revision)))
            else:
                yield Step(f"{name} takes revision {revision}", become(Mutation(Stage.TAKEN, revision)))
        case Stage.TAKEN:
            committed = _commit(scenario, state, i, mutation.revision)
            yield Step(f"{name} commits revision {mutation.revision}", become(committed))
        case Stage.COMMITTED:
            why = _may_return(scenario, state, i)
            if why:
                returned = mutation._replace(stage=Stage.RETURNED, waited=0)
                yield Step(f"{name} returns: {why}", become(returned))
        case _:
            return


def _commit(scenario: Scenario, state: State, i: int, revision: int) -> Mutation:
    is_after_restore = _is_after_restore(scenario, state)
    promise, forbids = _committed(state) | 1 << i, _undone(scenario, state)
    return Mutation(Stage.COMMITTED, revision, i, is_after_restore, promise=promise, forbids=forbids)


def _undone(scenario: Scenario, state: State) -> int:
    """What a restore has undone; after a failover, nobody says what counts."""
    if scenario.restores is Restores.NEVER:
        return 0
    return sum(1 << i for i, m in enumerate(state.mutations) if m.stage == Stage.LOST) & scenario.changing


def _notices(scenario: Scenario, state: State) -> bool:
    """Whether even a mutation that changes nothing notices that it is the first in a copy."""
    return state.is_copy and scenario.restores is Restores.NOTICED and Guard.COPY_NOTICED_BY_ALL in scenario.guards


def _is_after_restore(scenario: Scenario, state: State) -> bool:
    return Guard.COPY_WAITS_A_LEASE in scenario.guards and 0 <= state.noticed_for < scenario.lease


def _may_return(scenario: Scenario, state: State, i: int) -> str:
    mutation = state.mutations[i]
    if scenario.mutations[i] is Kind.REPEATS and Guard.REPETITIONS_WAIT not in scenario.guards:
        return "it has changed nothing"
    if mutation.waited == scenario.lease:
        return "it has waited for as long as a lease"
    if Guard.FALLBACK_AFTER_LEASE not in scenario.guards:
        return "it has waited for long enough"
    if mutation.is_after_restore:
        return ""
    runner = scenario.runner
    waits_for_itself = runner is not None and Guard.OWN_PROCESS_APPLIES in scenario.guards
    if waits_for_itself and not _has_applied(scenario, state.processes[runner or 0], mutation):
        return ""
    readings = [state.rows] if state.reading is None else [state.rows, state.reading]
    if any(_all_have_acknowledged(rows, mutation.revision, runner) for rows in readings):
        return "all have acknowledged it" if any(state.rows) else "there is nobody to wait for"
    return ""


def _has_applied(scenario: Scenario, process: Process, mutation: Mutation) -> bool:
    """`ChangeLog.includes`."""
    if Guard.OWN_POSITION not in scenario.guards:
        return process.applied.revision >= mutation.revision
    return process.applied != NOWHERE and _includes(process.changes, Position(mutation.revision, mutation.stamp))


def _includes(changes: int, position: Position) -> bool:
    return position.stamp < 0 or bool(changes >> position.stamp & 1)


def _all_have_acknowledged(rows: tuple[Row | None, ...], revision: int, runner: int | None) -> bool:
    return all(row is None or row.acknowledged >= revision or p == runner for p, row in enumerate(rows))


# ---------------------------------------------------------------- the poller and the lease


def _feed_steps(scenario: Scenario, state: State, p: int) -> Iterator[Step]:
    process, name = state.processes[p], f"P{p}"

    def polling(poll: Poll | None) -> State:
        return _with_process(state, p, process._replace(poll=poll))

    poll = process.poll
    if poll is None:
        yield Step(f"{name} reads its clock and asks", polling(Poll(0)))
        if scenario.leaves and process.applied != NOWHERE:
            yield Step(f"{name} leaves, and a new one starts", _left(scenario, state, p))
    else:
        yield Step(f"{name} loses its poll", polling(None))
        if poll.answer is None:
            yield _answered(scenario, state, p, poll)
        elif poll.answer.is_registered or Guard.NO_LEASE_WITHOUT_ROW not in scenario.guards:
            yield _taken_up(scenario, state, p, poll, poll.answer)
        else:
            yield Step(f"{name} hears that it is not registered, and registers", _registered(scenario, state, p))


def _answered(scenario: Scenario, state: State, p: int, poll: Poll) -> Step:
    """The statement `changes_poll`."""
    process, row = state.processes[p], state.rows[p]
    head, is_known = _head(state), _is_known(scenario, state, process.applied)
    is_continuous = is_known and head.revision >= process.applied.revision
    changes = _since(state, process.applied.revision) if is_continuous else _committed(state)
    answer = Answer(head, changes & _numbered(state), is_continuous, row is not None)
    answered = _with_process(state, p, process._replace(poll=poll._replace(answer=answer)))
    if row is not None:
        acknowledged = process.applied.revision
        if Guard.APPLIED_BEFORE_ACKNOWLEDGED not in scenario.guards:
            acknowledged = head.revision
        elif Guard.ACKNOWLEDGED_IN_THIS_HISTORY in scenario.guards and not is_known:
            acknowledged = NOWHERE.revision
        answered = _with_row(answered, p, row._replace(acknowledged=acknowledged))
        answered = _noticed(scenario, answered, p)
    return Step(f"the database answers P{p}'s poll, at revision {head.revision}", answered)


def _taken_up(scenario: Scenario, state: State, p: int, poll: Poll, answer: Answer) -> Step:
    process = state.processes[p]
    lease = max(scenario.lease - poll.age, 0) if Guard.CLOCK_BEFORE_POLL in scenario.guards else scenario.lease
    if poll.is_applied == (Guard.APPLIED_BEFORE_LEASE in scenario.guards):
        what, after = "renews its lease", process._replace(lease=lease)
    else:
        what, after = "applies", _applied(scenario, state, process, answer)
    rest = None if poll.is_applied else poll._replace(is_applied=True)
    return Step(f"P{p} {what}", _with_process(state, p, after._replace(poll=rest)))


def _applied(scenario: Scenario, state: State, process: Process, answer: Answer) -> Process:
    """`InvalidationIndex.apply`."""
    changes, snapshot, load = process.changes | answer.changes, process.snapshot, process.load
    if not process.lease and Guard.NOTHING_NEWER_SURVIVES_A_LAPSE in scenario.guards:
        load = load and load._replace(is_kept=False)
        if snapshot is not None and snapshot.verified.revision > process.applied.revision:
            snapshot = None
    is_continuous = answer.is_continuous
    if is_continuous and snapshot is not None and Guard.LOADED_IN_THIS_HISTORY in scenario.guards:
        # `History.keeps`: what was loaded before it was applied.
        is_ahead = process.applied.revision < snapshot.verified.revision <= answer.head.revision
        is_continuous = not is_ahead or _includes(changes, snapshot.verified)
    if not is_continuous:
        changes, snapshot, load = answer.changes, None, load and load._replace(is_kept=False)
        changes |= process.changes if answer.is_continuous else 0
    elif snapshot is not None and snapshot.verified.revision < _last_change(scenario, state, changes):
        # It will never be used again.
        snapshot = None
    return process._replace(applied=answer.head, changes=changes, snapshot=snapshot, load=load)


def _registered(scenario: Scenario, state: State, p: int) -> State:
    process = state.processes[p]
    state = _with_process(state, p, process._replace(poll=None, lease=0))
    counts = _is_known(scenario, state, process.applied)
    since = _head(state).revision if scenario.restores is Restores.NOTICED else 0
    return _with_row(state, p, Row((process.applied if counts else NOWHERE).revision, since=since))


def _left(scenario: Scenario, state: State, p: int) -> State:
    if Guard.LEASE_ENDS_BEFORE_ROW in scenario.guards:
        state = _with_process(state, p, Process())
    return _unseen(_with_row(state, p, None), p)


# ---------------------------------------------------------------- the dead


def _watcher_steps(scenario: Scenario, state: State, p: int) -> Iterator[Step]:
    row = state.rows[p]
    if row is None:
        return
    for w, sighting in enumerate(state.sightings[p]):
        if sighting is None or sighting.polls != row.polls:
            yield Step(f"somebody sees P{p}'s row", _with_sighting(state, p, w, Sighting(row.polls)))
        if Guard.UNCHANGED_FOR_A_LEASE not in scenario.guards:
            yield Step(f"somebody removes P{p}", _with_row(state, p, None))
        elif sighting is not None and sighting.polls == row.polls and sighting.age == scenario.lease:
            removed = _with_sighting(_with_row(state, p, None), p, w, None)
            yield Step(f"somebody removes P{p}, whose row was the same for a lease", removed)


def _noticed(scenario: Scenario, state: State, p: int) -> State:
    """The row has changed by a poll."""
    row = state.rows[p]
    if row is None or Guard.NO_TWO_POLLS_ALIKE in scenario.guards or row.polls == _FEW_POLLS:
        return _unseen(state, p)
    return _with_row(state, p, row._replace(polls=row.polls + 1))


def _unseen(state: State, p: int) -> State:
    return state._replace(sightings=_with(state.sightings, p, (None,) * len(state.sightings[p])))


# ---------------------------------------------------------------- loads and checks


def _load_steps(scenario: Scenario, state: State, p: int) -> Iterator[Step]:
    process, name, load = state.processes[p], f"P{p}", state.processes[p].load
    if load is None:
        # Who reads the database later knows all that was promised before.
        missing = 0 if state.former is None else _promised(scenario, state)
        sent = process._replace(load=Load(missing=missing))
        yield Step(f"a check asks {name}, which sends a load", _with_process(state, p, sent))
    elif load.found is None:
        now = KeySnapshot(_committed(state) & scenario.changing, _head(state))
        for who, found in ("the database", now), ("a former primary", state.former):
            if found is not None:
                read = process._replace(load=load._replace(found=found, missing=load.missing & ~found.content))
                what = f"{who} reads {name}'s load, at revision {found.verified.revision}"
                yield Step(what, _with_process(state, p, read))
    else:
        if Guard.NO_OLD_LOAD_JOINED not in scenario.guards:
            missing = load.missing | _promised(scenario, state) & ~load.found.content
            joined = process._replace(load=load._replace(missing=missing))
            yield Step(f"a check asks {name}, and waits for the load that was sent", _with_process(state, p, joined))
        is_stale = bool(load.missing & _committed(state))
        kept = _kept(scenario, process, load, load.found)._replace(load=None)
        yield Step(f"{name}'s load arrives", _with_process(state, p, kept), is_stale)


def _kept(scenario: Scenario, process: Process, load: Load, found: KeySnapshot) -> Process:
    """`SnapshotCache.put`."""
    if not load.is_kept:
        return process
    if Guard.LOADED_IN_THIS_HISTORY in scenario.guards and process.applied != NOWHERE:
        is_ahead = found.verified.revision > process.applied.revision
        if not is_ahead and not _includes(process.changes, found.verified):
            return process
    if Guard.REVISION_OF_SNAPSHOT not in scenario.guards:
        found = found._replace(verified=process.applied)
    before = process.snapshot
    is_newest = before is None or found.verified.revision >= before.verified.revision
    return process._replace(snapshot=found) if is_newest else process


def _memory_steps(scenario: Scenario, state: State, p: int) -> Iterator[Step]:
    process, snapshot = state.processes[p], state.processes[p].snapshot
    if snapshot is None or not (process.lease or Guard.LEASE_AT_EACH_HIT not in scenario.guards):
        return
    if not _holds(scenario, state, process, snapshot):
        return
    is_older = snapshot.verified.revision < process.applied.revision
    after = process._replace(snapshot=snapshot._replace(verified=process.applied)) if is_older else process
    is_stale = bool(_promised(scenario, state) & ~snapshot.content or _forbidden(state) & snapshot.content)
    how = ", unchanged since it was loaded" if is_older else ""
    yield Step(f"a check asks P{p}, which answers from memory{how}", _with_process(state, p, after), is_stale)
    if scenario.restores is Restores.NOTICED:
        yield from _min_revision_steps(scenario, state, p, after, is_older=is_older)


def _min_revision_steps(scenario: Scenario, state: State, p: int, after: Process, *, is_older: bool) -> Iterator[Step]:
    """Whoever has heard of a commit asks with its revision; `SnapshotSource.look_up` compares numbers."""
    known = after.applied if is_older else after.snapshot and after.snapshot.verified
    for i in _bits(_committed(state)):
        mutation = state.mutations[i]
        if known is not None and after.snapshot is not None and known.revision >= mutation.revision > 0:
            content = after.snapshot.content
            is_stale = bool(mutation.promise & _committed(state) & scenario.changing & ~content)
            yield Step(f"a check asks P{p} with M{i}'s revision", _with_process(state, p, after), is_stale)


def _holds(scenario: Scenario, state: State, process: Process, snapshot: KeySnapshot) -> bool:
    """`InvalidationIndex.is_current`."""
    return snapshot.verified.revision >= max(process.applied.revision, 0) or (
        _last_change(scenario, state, process.changes) <= snapshot.verified.revision
    )


def _forbidden(state: State) -> int:
    """What a check that starts now must know nothing of."""
    forbidden = 0
    for mutation in state.mutations:
        if mutation.stage == Stage.RETURNED:
            forbidden |= mutation.forbids
    return forbidden


def _promised(scenario: Scenario, state: State) -> int:
    """What a check that starts now must know of. Nobody promises what was lost."""
    promise = 0
    for mutation in state.mutations:
        if mutation.stage == Stage.RETURNED:
            promise |= mutation.promise
    return promise & _committed(state) & scenario.changing


# ---------------------------------------------------------------- failovers


def _failovers(scenario: Scenario, state: State) -> Iterator[Step]:
    if Guard.FAILOVER_TAKES_A_LEASE in scenario.guards and any(_may_hold_a_lease(scenario, p) for p in state.processes):
        return
    head = _head(state)
    is_fenced = Guard.FORMER_PRIMARY_IS_FENCED in scenario.guards
    former = None if is_fenced else KeySnapshot(_committed(state) & scenario.changing, head)
    for revision in range(head.revision + (not is_fenced)):
        mutations = _lost_after(state, revision)
        kept = tuple(row and row._replace(acknowledged=min(row.acknowledged, revision)) for row in state.rows)
        for rows in {kept, (None,) * len(kept)}:
            registrations = "" if any(rows) or not any(kept) else ", and the registrations"
            yield Step(
                f"a failover loses what came after revision {revision}{registrations}",
                state._replace(mutations=mutations, rows=rows, former=former),
            )


def _lost_after(state: State, revision: int) -> tuple[Mutation, ...]:
    return tuple(
        Mutation(Stage.LOST, m.revision) if m.revision > revision and m.stage != Stage.IDLE else m
        for m in state.mutations
    )


def _restores(scenario: Scenario, state: State) -> Iterator[Step]:
    """Whatever leases there are go on."""
    for revision in sorted({0, *(m.revision for m in state.mutations if m.stage in (Stage.COMMITTED, Stage.RETURNED))}):
        if revision >= _head(state).revision:
            continue
        restored = state._replace(
            mutations=_lost_after(state, revision), is_copy=scenario.restores is Restores.NOTICED, noticed_for=-1
        )
        kept = tuple(row and row._replace(acknowledged=min(row.acknowledged, revision)) for row in state.rows)
        yield Step(f"a dump of revision {revision} is restored", restored._replace(rows=kept))
        known = tuple(row if row and row.since < revision else None for row in kept)
        if known != kept and scenario.restores is Restores.NOTICED:
            what = f"a dump of revision {revision} is restored, which does not know all processes"
            yield Step(what, restored._replace(rows=known))


def _may_hold_a_lease(scenario: Scenario, process: Process) -> bool:
    """It has one, or may still get it from an answer that it was sent."""
    poll = process.poll
    return bool(process.lease) or (poll is not None and poll.answer is not None and poll.age < scenario.lease)


# ---------------------------------------------------------------- exploration


@dataclass(frozen=True)
class Exploration:
    """What was found."""

    states: int
    seen: frozenset[str]
    """All steps that were taken."""
    counterexample: tuple[str, ...] | None
    """The shortest way to a stale answer."""


def explore(scenario: Scenario) -> Exploration:
    """Go through all states, breadth first, up to the first stale answer."""
    first = start(scenario)
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    frontier, seen = [first], set[str]()
    while frontier:
        reached = []
        for state in frontier:
            for what, after, is_stale in steps(scenario, state):
                if is_stale:
                    return Exploration(len(came_from), frozenset(seen), (*_way(came_from, state), f"{what}: STALE"))
                seen.add(what)
                if after not in came_from:
                    came_from[after] = state, what
                    reached.append(after)
        frontier = reached
    return Exploration(len(came_from), frozenset(seen), None)


def _way(came_from: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    way = []
    while (before := came_from[state]) is not None:
        state, what = before
        way.append(what)
    return way[::-1]


# ---------------------------------------------------------------- small things


def _with(things: tuple[T, ...], i: int, thing: T) -> tuple[T, ...]:
    return (*things[:i], thing, *things[i + 1 :])


def _with_process(state: State, p: int, process: Process) -> State:
    return state._replace(processes=_with(state.processes, p, process))


def _with_sighting(state: State, p: int, w: int, sighting: Sighting | None) -> State:
    # Which of the watchers has seen what is all the same.
    seen = tuple(sorted(_with(state.sightings[p], w, sighting), key=lambda s: s or ()))
    return state._replace(sightings=_with(state.sightings, p, seen))


def _with_row(state: State, p: int, row: Row | None) -> State:
    return state._replace(rows=_with(state.rows, p, row))
