"""The named queries, loaded once: `queries.tenant_get(connection, product_id=…, tenant_id=…)`."""

from pathlib import Path
from typing import Any

import aiosql

# Its methods are generated from the SQL files. A test prepares every one of them.
queries: Any = aiosql.from_path(Path(__file__).parent, "asyncpg")
