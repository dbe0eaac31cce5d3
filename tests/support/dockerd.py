"""A real dockerd in a network namespace, in the place of podman."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

from tests.support.podman import WAIT, Podman

# Its directories below /run are its own, and it changes nothing of the network. The hierarchies of
# control groups that go away, here alone, are those that a small machine does not let it use.
SERVICE = """
for hierarchy in unified memory; do
    ! mountpoint -q /sys/fs/cgroup/$hierarchy || umount /sys/fs/cgroup/$hierarchy
done
for directory in docker containerd; do
    mkdir -p /run/$directory && mount -t tmpfs tmpfs /run/$directory
done
exec dockerd -H "unix://$1" --data-root "$2/data" --exec-root "$2/exec" --pidfile "$2/pid" \
    --insecure-registry "$3" --cgroup-parent "$4" --storage-driver overlay2 \
    --bridge none --iptables=false --oom-score-adjust 0
"""


class Dockerd(Podman):
    """The engine, with all that `Podman` has."""

    bounds_memory = False  # which takes the hierarchy of control groups that was left out

    def _begin(self) -> subprocess.Popen[bytes]:
        words = [str(self.socket), str(self.directory), self.registry, self._groups]
        return self._spawn(SERVICE, words, {})

    def begin_swarm(self) -> None:
        """Have the engine be the one node of a Swarm."""
        there = self.network.there
        asked = {"ListenAddr": f"{there}:2377", "AdvertiseAddr": there}
        answer = self.ask("POST", "/swarm/init", json.dumps(asked).encode(), "application/json")
        assert answer.status_code == 200, answer.text

    def leave_swarm(self) -> None:
        """Have the engine be itself again."""
        answer = self.ask("POST", "/swarm/leave?force=true")
        assert answer.status_code == 200, answer.text

    @property
    def _groups(self) -> str:
        return f"/kk-dockerd-{os.getpid()}"

    def stop(self) -> None:
        """The engine ends, and its containers with it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT)
            self._process = None
            self.socket.unlink(missing_ok=True)

    def remove(self) -> None:
        """End everything, and remove all files."""
        super().remove()
        for top in Path("/sys/fs/cgroup").glob(f"*{self._groups}"):
            for group in sorted(top.rglob("*"), reverse=True):
                if group.is_dir():
                    with contextlib.suppress(OSError):
                        group.rmdir()
            with contextlib.suppress(OSError):
                top.rmdir()
