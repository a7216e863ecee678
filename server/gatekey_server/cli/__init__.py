"""The commands that come with the server: `gatekey serve`, `gatekey migrate` and `gatekey peppers`."""

import typer

from gatekey_server.cli import commands


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line; its entry point of the group `gatekey.commands`."""
    app.command("serve")(commands.serve)
    app.command("migrate")(commands.migrate)
    app.add_typer(commands.peppers, name="peppers")
