"""Authentication of callers, by the service token in the metadata or by a client certificate."""

import hashlib
import os
from functools import partial

from gatekey.core.errors import Unauthenticated
from gatekey.core.secrets import Keyring
from google.protobuf.descriptor import MethodDescriptor

from gatekey_server.authorization import callers
from gatekey_server.authorization.callers import Caller
from gatekey_server.background.propagation_recorder import PropagationRecorder
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.rpc import tls
from gatekey_server.rpc.context import ACTOR_KEY, WAIT_KEY, Call, Clock, RequestContext, Token
from gatekey_server.rpc.repeats import Recent
from gatekey_server.rpc.tls import CertificateCallers
from gatekey_server.store.database import Connection

MAX_TOKENS = 10_000
"""How many tokens' digests are cached, by a keyed hash."""

_SCHEME = "bearer "


class Authenticator:
    """Identifies callers by the metadata of a call and by its connection. Every method raises `Unauthenticated`."""

    def __init__(
        self,
        snapshots: SnapshotSource,
        keyring: Keyring,
        clock: Clock,
        certificate_callers: CertificateCallers,
        usage: UsageRecorder,
        recorder: PropagationRecorder,
    ) -> None:
        self._snapshots = snapshots
        self._keyring = keyring
        self._clock = clock
        self._certificate_callers = certificate_callers
        self._usage = usage
        self._recorder = recorder
        self._hash_key = os.urandom(32)
        self._tokens = Recent[Token](MAX_TOKENS)

    def token_of(self, authorization: str) -> Token:
        """Return the token in a value of `authorization`. Raises `Unauthenticated` (`TOKEN_INVALID`)."""
        name = hashlib.blake2b(authorization.encode(), digest_size=16, key=self._hash_key).digest()
        token = self._tokens.get(name)
        if token is None:
            if not authorization[: len(_SCHEME)].lower() == _SCHEME:
                raise Unauthenticated("TOKEN_INVALID", "`authorization` is not of the form `Bearer <service token>`")
            # Only spaces: stripping other white space would accept several texts for one token.
            token = Token(self._keyring.digests(authorization[len(_SCHEME) :].strip(" ")))
            self._tokens.put(name, token)
        return token

    def knows(self, authorization: str) -> bool:
        """Whether a token is in memory and valid."""
        known = self._snapshots.recall(self.token_of(authorization).digests)
        if known is None:
            return False
        callers.identify(known, self._clock())
        return True

    async def token(self, _: MethodDescriptor, context: RequestContext) -> Token:
        """Return the token of a call, which is valid now. For methods that look it up again themselves."""
        token = await self._presented(context)
        callers.identify(await self._snapshots.get(token.digests), self._clock())
        return token

    async def _presented(self, context: RequestContext) -> Token:
        values = context.values("authorization")
        if not values and self._certificate_callers:
            return await self._certificate_token(context)
        if not values:
            raise Unauthenticated("TOKEN_MISSING", "the metadata `authorization: Bearer <service token>` is required")
        if len(values) > 1:
            raise Unauthenticated("TOKEN_INVALID", "there is more than one `authorization`")
        return self.token_of(values[0])

    async def _certificate_token(self, context: RequestContext) -> Token:
        key = tls.caller_of(context.connection(), self._certificate_callers)
        digests = await self._snapshots.digests_of(key)
        if not digests:
            raise Unauthenticated("TOKEN_INVALID", f"the client certificate stands for {key}, which is no more")
        return Token(digests, key)

    async def call(self, method: MethodDescriptor, context: RequestContext) -> Call:
        """Return the call of an identified caller, and record the use of the token."""
        token = await self._presented(context)
        caller = callers.identify(await self._snapshots.get(token.digests), self._clock())
        self._usage.record(caller.snapshot, caller.now)
        again = partial(self._identify_again, token)
        return Call(caller, again, method, context.values(ACTOR_KEY), context.values(WAIT_KEY), self._recorder)

    async def _identify_again(self, token: Token, connection: Connection) -> Caller:
        digests = token.digests
        if token.key is not None:
            # A certificate stands for a key, whose secrets may have been rotated.
            digests = await self._snapshots.digests_of_within(connection, token.key)
        return callers.identify(await self._snapshots.get_within(connection, digests), self._clock())
