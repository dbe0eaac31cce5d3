"""The way to a host behind SSH, through the jump hosts that ssh's configuration names.

asyncssh follows ``ProxyJump`` by itself, but leaves connections to jump hosts open when what lies
behind them does not answer in time. So each hop is connected here, and ends with the next one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

__all__ = ["Way"]

MAX_JUMPS: Final = 8
"""How many jump hosts there may be. More are a jump host whose own way leads through itself."""

MAX_PORT: Final = 65535
MAX_SHOWN: Final = 100  # characters of a wrong name

# As ssh_config(5) has it. An IPv6 address is in brackets.
_JUMP: Final = re.compile(
    r"(ssh://)?((?P<user>.+)@)?(\[(?P<address>[^]]+)\]|(?P<host>[^:/\[]+))(:(?P<port>[0-9]{1,5}))?"
)


class Way:
    """The way to one host, which is called ``name``; ``config`` has the files of ssh's options."""

    def __init__(self, name: str, config: Sequence[str] | None) -> None:
        self.at = name
        """The host that is being connected, for people: the host itself, or a jump host."""
        self._name = name
        self._config = config
        self._jumps = 0

    async def connect(self, host: str, given: Mapping[str, Any]) -> SSHClientConnection:
        """A connection to the host; ``given`` are options that go before those of ssh.

        Raises what asyncssh does, and `ValueError` for a way without an end.
        """
        return await self._reach(host, self._name, given, None)

    async def _reach(
        self, host: str, name: str, given: Mapping[str, Any], jump: SSHClientConnection | None
    ) -> SSHClientConnection:
        """A connection to a host by way of ``jump``, which ends with it, or if there is none."""
        import asyncssh

        options: dict[str, Any] = {**given, "config": self._config}
        self.at = name
        if jump is None and self._config is not None:
            # As with ssh, a jump host behind another one is reached from there, whatever jump host
            # its own options name.
            found = await asyncssh.SSHClientConnectionOptions.construct(host=host, **options)
            jump = await self._through(found.tunnel)
        self.at = name
        try:
            connection = await asyncssh.connect(host, tunnel=jump or (), **options)
        except BaseException:
            if jump is not None:
                jump.abort()
            raise
        if jump is not None:
            connection.set_tunnel(jump)
        return connection

    async def _through(self, jumps: object) -> SSHClientConnection | None:
        """A connection to the last of these jump hosts, if any."""
        # All are read first: where one makes no sense, none is connected yet.
        texts = jumps.split(",") if isinstance(jumps, str) else []
        jump = None
        for name, host, given in [self._jump(text.strip()) for text in texts]:
            jump = await self._reach(host, f"{name}, on the way to {self._name},", given, jump)
        return jump

    def _jump(self, text: str) -> tuple[str, str, dict[str, Any]]:
        """A jump host's name for people, its own, and options. Raises `ValueError`."""
        self._jumps += 1
        if self._jumps > MAX_JUMPS:
            raise ValueError(f"ProxyJump leads through more than {MAX_JUMPS} hosts")
        found = _JUMP.fullmatch(text)
        if found is None or int(found["port"] or 0) > MAX_PORT:
            raise ValueError(f"ProxyJump names {text[:MAX_SHOWN]!r}, which is no host")
        given: dict[str, Any] = {"username": found["user"]} if found["user"] else {}
        if found["port"]:
            given["port"] = int(found["port"])
        return text, found["address"] or found["host"], given
