"""Connections of our own making: ``--kernel-websocket-connection-class MODULE:NAME``."""

from __future__ import annotations

from app.ws.channels import ChannelsConnection


class Curt(ChannelsConnection):
    """Accepts a client, and closes at once."""

    async def run(self) -> None:
        await self._websocket.accept()
        await self._websocket.close(4123, "not today")


class Talkative(ChannelsConnection):
    """Tells on stdout who comes and goes."""

    async def run(self) -> None:
        print(f"{self._session} comes", flush=True)  # noqa: T201
        try:
            await super().run()
        finally:
            print(f"{self._session} goes", flush=True)  # noqa: T201


class Unrelated:
    """Is no connection."""


not_a_class = "a string"
