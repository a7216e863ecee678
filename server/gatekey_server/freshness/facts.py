"""The source of facts. Each question is answered by the database, in one round trip."""

from collections.abc import Sequence

from gatekey_server.domain.decisions import Fact
from gatekey_server.domain.names import ApiKeyName
from gatekey_server.domain.secrets import Digest
from gatekey_server.store import facts
from gatekey_server.store.database import Database
from gatekey_server.store.products import CompiledSpecs


class FactSource:
    """Yields the facts behind the digests of secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._specs = CompiledSpecs()

    async def get(self, digests: Sequence[Digest]) -> dict[Digest, Fact]:
        """The facts as they are now; a digest of no secret is left out.

        Raises `Unavailable` where the database cannot answer: then nothing is known.
        """
        if not digests:
            return {}
        return await facts.load(self._database, self._specs, digests)

    async def digests_of(self, key: ApiKeyName) -> tuple[Digest, ...]:
        """By which digests to ask for the facts of a key whose holder presents no secret; none for no such key.

        Costs a round trip. Raises `Unavailable` where the database cannot answer.
        """
        return await facts.digests(self._database, key)
