"""What the tests of the command line share: a server as `gatekey serve` starts it, in a directory of its own."""

from collections.abc import Iterator

import pytest
from gatekey.cli.calls import Connection

from tests.support.cli import EXAMPLES, PRODUCTS, Cli, Served, add_member, create_tenant, endpoint_of


@pytest.fixture(scope="session")
def cli_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The program, in a directory where a server of its own with the five products has its data."""
    cwd = tmp_path_factory.mktemp("cli")
    with Served(cwd) as served:
        assert served.address
        cli = Cli(cwd)
        cli("products", "apply", *(EXAMPLES / f"{product}.yaml" for product in PRODUCTS))
        yield cli
    log = served.log.read_text()
    assert endpoint_of(cwd).token not in log + "".join(served.lines)
    assert "rpc.failed" not in log


@pytest.fixture(scope="session")
def cli_connection(cli_server: Cli) -> Iterator[Connection]:
    """A connection to the same server, for what a test needs and is not about."""
    with Connection(endpoint_of(cli_server.cwd)) as connection:
        yield connection


@pytest.fixture(scope="session")
def cli(cli_server: Cli, cli_connection: Connection) -> Cli:
    """The program, where Heyoo has a tenant `acme` with a member `u_42`."""
    create_tenant(cli_connection, "heyoo", "acme")
    add_member(cli_connection, "products/heyoo/tenants/acme", "u_42", "owner")
    return cli_server


@pytest.fixture(scope="session")
def secret(cli: Cli) -> str:
    """A key of `u_42` that may read campaigns only."""
    created = cli.json(
        "keys", "create", "heyoo", "acme", "--name", "CI", "--member", "u_42", "--grant", "campaigns:read"
    )
    return str(created["secret"])
