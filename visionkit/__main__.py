"""`python -m visionkit` is the `visionkit` command."""

from visionkit.cli.main import command

command()
