"""A group of commands that are imported when they are used: one command need not wait for the libraries of all others."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import click


class Lazy(click.Group):
    """A group with further commands, by name, at "module:attribute"."""

    def __init__(self, *args: Any, commands_at: Mapping[str, str], **more: Any) -> None:
        super().__init__(*args, **more)
        self._at = dict(commands_at)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return sorted({*super().list_commands(ctx), *self._at})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now if need be."""
        where = self._at.get(cmd_name)
        if where is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = where.partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), name))
