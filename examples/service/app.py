"""A small service whose campaigns are for holders of Heyoo keys. Its README says how to run it."""

from typing import Annotated

import gatekey
from fastapi import FastAPI
from gatekey.fastapi import KeyGuard, requires

# Where the server is and which token to present is in GATEKEY_ADDRESS and GATEKEY_TOKEN. The connection is opened by
# the first check.
client = gatekey.AsyncClient()
guard = KeyGuard(client, product="heyoo")

CAMPAIGNS = {"spring": "Spring sale"}


# At the start it is found out whether the routes below and the token fit the product; at the end the client is closed.
app = FastAPI(title="Campaigns", lifespan=guard.lifespan)

MayRead = Annotated[gatekey.Decision, requires(guard, "campaigns/{campaign}", "read")]
MayWrite = Annotated[gatekey.Decision, requires(guard, "campaigns/{campaign}", "write")]


@app.get("/campaigns/{campaign}")
async def read_campaign(campaign: str, decision: MayRead) -> dict[str, str | None]:
    """Needs `read` on the campaign."""
    return {"campaign": campaign, "title": CAMPAIGNS.get(campaign), "organisation": decision.tenant}


@app.put("/campaigns/{campaign}")
async def write_campaign(campaign: str, title: str, decision: MayWrite) -> dict[str, str]:
    """Needs `write` on the campaign."""
    CAMPAIGNS[campaign] = title
    return {"campaign": campaign, "title": title, "changed_by": decision.principal}
