"""Every attack for a moment, over each transport: somebody who asks every 10 ms is answered in time.

`make attack` does the same for longer, and tells the figures.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attack.attacks import ATTACKS
from tests.attack.field import TRANSPORTS, Field, open_field
from tests.attack.victim import INTERVAL_S
from tests.support.databases import Databases

pytestmark = pytest.mark.drill

SECONDS = (1.5, 1.5, 3, 3, 6)
"""Of each try: a machine that others use, too, is slow for a moment now and then, also for attackers."""


@pytest.fixture(scope="module", params=TRANSPORTS)
async def field(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Field]:
    """A server and a victim."""
    cold_keys = int(len(ATTACKS) * sum(SECONDS) / INTERVAL_S / 2) + 1
    directory = tmp_path_factory.mktemp("attack")
    async with open_field(
        request.param, await databases.create(), Path(directory), cold_keys=cold_keys, scale=0.1
    ) as made:
        yield made


@pytest.mark.parametrize("name", ATTACKS)
async def test_somebody_else_is_served_in_time(field: Field, name: str) -> None:
    *earlier, last = SECONDS
    for seconds in earlier:
        if not (await field.suffer(ATTACKS[name], seconds)).faults:
            return
    outcome = await field.suffer(ATTACKS[name], last)
    assert outcome.faults == [], outcome.seen
