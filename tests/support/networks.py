"""A network of a test's own: this machine and a namespace, joined by a cable that can be pulled."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class Network:
    """A network namespace, ``there``, and the way to it from here.

    It takes root, as all of this does. Addresses are of a range that no network of the machine's
    has, and follow from this process's id, so that workers have networks of their own. Whoever has
    several says ``which`` it is, and gives each a name of its own.
    """

    def __init__(self, name: str = "kk", which: int = 0) -> None:
        number = os.getpid() % 16384
        self._here_device = f"{name}{os.getpid()}"
        self.namespace = self._here_device
        base = f"10.{192 + number // 256}.{number % 256}"
        self.here, self.there = (f"{base}.{4 * which + end}" for end in (1, 2))

    @property
    def path(self) -> Path:
        """What nsenter enters the namespace by."""
        return Path("/run/netns") / self.namespace

    def make(self) -> None:
        device, name = self._here_device, self.namespace
        _ip("netns", "add", name)
        _ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
        # Without addresses that the system makes itself, and tells of a second later.
        _ip("link", "set", device, "addrgenmode", "none")
        _ip("addr", "add", f"{self.here}/30", "dev", device)
        _ip("-n", name, "addr", "add", f"{self.there}/30", "dev", "eth0")
        for words in (("set", device), ("-n", name, "set", "eth0"), ("-n", name, "set", "lo")):
            options, (verb, link) = words[:-2], words[-2:]
            _ip(*options, "link", verb, link, "up")

    def pull_cable(self) -> None:
        """Nothing goes from here to there, or back, and nobody is told."""
        _ip("link", "set", self._here_device, "down")

    def plug_cable(self) -> None:
        """It does again."""
        _ip("link", "set", self._here_device, "up")

    def remove(self) -> None:
        # The device first: with its namespace it would go a moment later.
        subprocess.run(
            ["ip", "link", "del", self._here_device], check=False, stderr=subprocess.DEVNULL
        )
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
