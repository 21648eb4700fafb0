"""`python -m visionkit` is the `visionkit` command."""

from visionkit.cli import command

command()
