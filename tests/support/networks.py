"""A network of a test's own: this machine and a namespace, joined by cables that can be pulled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL
from typing import NamedTuple


class Network:
    """A network namespace, ``there``, and the way to it from here.

    It takes root, as all of this does. Addresses are of a range that no network of the machine's
    has, and follow from this process's id, so that workers have networks of their own. Whoever has
    several says ``which`` it is, and gives each a name of its own. There may be several ``cables``,
    each with addresses of its own; ``here`` and ``there`` are those of the first.
    """

    def __init__(self, name: str = "kk", which: int = 0, cables: int = 1) -> None:
        number = os.getpid() % 16384
        self.namespace = f"{name}{os.getpid()}"
        base = f"10.{192 + number // 256}.{number % 256}"
        self.cables = [
            Cable(
                f"{self.namespace}{'' if one == 0 else chr(ord('a') + one)}",
                self.namespace,
                f"eth{one}",
                *(f"{base}.{4 * (which + one) + end}" for end in (1, 2)),
            )
            for one in range(cables)
        ]
        self.here, self.there = self.cables[0].here, self.cables[0].there

    @property
    def path(self) -> Path:
        """What nsenter enters the namespace by."""
        return Path("/run/netns") / self.namespace

    def make(self) -> None:
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        for cable in self.cables:
            cable.lay()

    def pull_cable(self, *which: int) -> None:
        """Nothing goes from here to there, or back, and nobody is told. Without a number: all."""
        for cable in self._of(which):
            _ip("link", "set", cable.device, "down")

    def plug_cable(self, *which: int) -> None:
        """It does again."""
        for cable in self._of(which):
            _ip("link", "set", cable.device, "up")

    def _of(self, which: Sequence[int]) -> list[Cable]:
        return [self.cables[one] for one in which] if which else self.cables

    def remove(self) -> None:
        # The devices first: with their namespace they would go a moment later.
        for cable in self.cables:
            subprocess.run(["ip", "link", "del", cable.device], check=False, stderr=DEVNULL)
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)


class Cable(NamedTuple):
    """One cable: its ``device`` here, the ``other`` one in the namespace, and their addresses."""

    device: str
    namespace: str
    other: str
    here: str
    there: str

    def lay(self) -> None:
        peer = ("peer", "name", self.other, "netns", self.namespace)
        _ip("link", "add", self.device, "type", "veth", *peer)
        # Without addresses that the system makes itself, and tells of a second later.
        _ip("link", "set", self.device, "addrgenmode", "none")
        _ip("addr", "add", f"{self.here}/30", "dev", self.device)
        _ip("-n", self.namespace, "addr", "add", f"{self.there}/30", "dev", self.other)
        _ip("link", "set", self.device, "up")
        _ip("-n", self.namespace, "link", "set", self.other, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
