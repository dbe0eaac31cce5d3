"""A real Slurm: its controller on this machine, and two nodes in network namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.kernels.driver import free_ports
from tests.support.kernelspecs import Spec
from tests.support.networks import Network
from tests.support.processes import eventually_sync

WAIT = 60  # seconds

CONFIGURATION = """
ClusterName=kk
SlurmctldHost=kkctl({here})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/ctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/ctld.log
SlurmdLogFile={directory}/slurmd-%n.log
SlurmctldPort={port}
SlurmdPort={node_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmdTimeout=300
MessageTimeout=5
KillWait=2
MinJobAge=300
OverTimeLimit=0
MpiDefault=none
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES DefMemPerNode=100 MaxTime=60 State=UP OverSubscribe=NO
"""
NODE = "NodeName={name} NodeAddr={address} CPUs=8 RealMemory=4000 Feature=node{number}"
NODE_PORT = 6818

# Slurm knows nodes by their names, and these are known nowhere else.
CONTROLLER = "hostname kkctl; mount --bind {hosts} /etc/hosts; exec slurmctld -D"
# A job has what a login has, and that takes as long as the files of this user's shell do.
DAEMON = """
hostname {name}
mount --bind {hosts} /etc/hosts
for file in .bash_profile .bash_login .profile .bashrc; do
    [ ! -e ~/$file ] || mount --bind /dev/null ~/$file
done
exec slurmd -D -N {name}
"""


class Slurm:
    """The engine. ``nodes`` are their networks, by their names."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kk-slurm-")).resolve()
        self.shared = self.directory / "shared"
        """Where the service hands something over to its jobs."""
        self.shared.mkdir(0o700)
        self.work = self.directory / "work"
        """Where kernels work."""
        self.work.mkdir()
        self.nodes = {f"kkn{which}": Network(f"kkl{which}", which) for which in (1, 2)}
        self.here = self.nodes["kkn1"].here
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def env(self) -> dict[str, str]:
        """What leads the commands of Slurm to this one."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def make(self) -> None:
        """Make the networks, and start. Returns when both nodes are idle."""
        for network in self.nodes.values():
            network.make()
            # The way to the other's end here, where the controller is.
            way = ["ip", "-n", network.namespace, "route", "add", "default", "via", network.here]
            subprocess.run(way, check=True)
        (self.directory / "state").mkdir()
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        lines = [f"{self.here} kkctl", "127.0.0.1 localhost"]
        lines += [f"{network.there} {name}" for name, network in self.nodes.items()]
        self._write("hosts", "\n".join(lines) + "\n")
        self._write("cgroup.conf", "CgroupPlugin=cgroup/v1\n")
        nodes = [
            NODE.format(name=name, address=network.there, number=name[-1])
            for name, network in self.nodes.items()
        ]
        text = CONFIGURATION.format(
            here=self.here,
            directory=self.directory,
            port=free_ports()["shell_port"],
            node_port=NODE_PORT,
            nodes="\n".join(nodes),
        )
        self._write("slurm.conf", text)
        where = self.directory
        options = {"socket": "sock", "key-file": "key", "pid-file": "pid", "log-file": "log"}
        words = [f"--{name}={where}/munge.{end}" for name, end in options.items()]
        seed = f"--seed-file={where}/munge.seed"
        self._spawn("munged", ["munged", "--foreground", "--force", *words, seed])
        eventually_sync((where / "munge.sock").exists, WAIT)
        self.start()
        for name in self.nodes:
            self.start_node(name)
        eventually_sync(lambda: self.states() == {"idle"}, WAIT)

    def start(self) -> None:
        """Start the controller. Returns when it answers."""
        self._spawn("controller", self._alone(CONTROLLER.format(hosts=self.directory / "hosts")))
        eventually_sync(lambda: self.run("scontrol", "ping", check=False).returncode == 0, WAIT)

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        script = DAEMON.format(name=name, hosts=self.directory / "hosts")
        enter = ["nsenter", f"--net={self.nodes[name].path}"]
        self._spawn(name, [*enter, *self._alone(script)])

    def stop(self, name: str = "controller") -> None:
        """End the controller, or the daemon of a node; jobs go on."""
        process = self._processes.pop(name)
        process.terminate()
        process.wait(WAIT)

    def _alone(self, script: str) -> list[str]:
        return ["unshare", "-m", "-u", "--propagation", "private", "sh", "-c", script]

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def _spawn(self, name: str, command: list[str]) -> None:
        with open(self.directory / "out", "ab") as out:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self.env},
                start_new_session=True,
            )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm's."""
        env = {**os.environ, **self.env}
        return subprocess.run(command, check=check, capture_output=True, text=True, env=env)

    def register(self, name: str) -> None:
        """Have a node tell the controller that it is there, as it does once in a while."""
        self._processes[name].send_signal(signal.SIGHUP)

    def jobs(self) -> list[dict[str, str]]:
        """Those that wait or run: their ids, and names."""
        lines = self.run("squeue", "-h", "-o", "%i %j").stdout.splitlines()
        return [dict(zip(("id", "name"), line.split(), strict=True)) for line in lines]

    def job_of(self, kernel_id: str) -> dict[str, str]:
        """That of a kernel."""
        (found,) = [job for job in self.jobs() if f"-{kernel_id}." in job["name"]]
        return found

    def kill(self, job_id: str) -> None:
        """``kill -9`` of all processes of a job."""
        own = {"SLURM_JOB_ID": job_id, "SLURM_CONF": self.env["SLURM_CONF"]}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if own.items() <= process.environ().items() and "slurm" not in process.name():
                    process.kill()

    def files(self, end: str) -> list[Path]:
        """What is in the shared directory."""
        return [*self.shared.glob(f"*.{end}")]

    def has_directory(self, path: str) -> bool:
        """Whether nodes have a directory."""
        return Path(path).is_dir()

    def give_up(self, name: str) -> None:
        """Have the controller miss a node, and give up its jobs, as it would some minutes later."""
        for state in ("NoResp", "DOWN"):
            self.run("scontrol", "update", f"NodeName={name}", f"State={state}", "Reason=test")

    def away(self) -> list[str]:
        """The nodes that do not answer."""
        return self.run("sinfo", "-h", "-N", "--dead", "-o", "%N").stdout.split()

    def states(self) -> set[str]:
        """The states of the nodes."""
        return {*self.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split()}

    def remove(self) -> None:
        """End everything, and remove all files."""
        if "controller" not in self._processes:
            self.start()
        self.run("scancel", "--user=root")
        eventually_sync(lambda: self.jobs() == [], WAIT)
        for name in [*self._processes]:
            self.stop(name)
        for network in self.nodes.values():
            network.remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    def spec(self, options: Mapping[str, Any] | None = None, **more: Any) -> Spec:
        """A kernelspec whose kernels run in its jobs; ``options`` are the provisioner's."""
        config = {
            "shared": str(self.shared),
            "python": sys.executable,
            "directory": str(self.work),
            **(options or {}),
        }
        stanza = {"provisioner_name": "kernelkeep-slurm", "config": config}
        return Spec(metadata=json.loads(json.dumps({"kernel_provisioner": stanza})), **more)
