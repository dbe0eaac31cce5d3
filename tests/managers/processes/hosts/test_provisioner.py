"""The environment of a kernel on another host."""

from __future__ import annotations

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from app.managers.processes.hosts.options import PROVISIONER
from app.managers.processes.hosts.provisioner import SSHProvisioner, environment
from app.managers.processes.keeper.remote import Host

HOST = Host("/home/ada", "/usr/bin/python3", {"PATH": "/usr/bin", "HOME": "/home/ada"})


def test_it_is_the_hosts_with_what_was_asked_for() -> None:
    inherited = {"PATH": "/srv/bin", "HOME": "/srv", "LANG": "C"}
    asked = {**inherited, "KERNEL_USERNAME": "ada", "LANG": "de_DE"}
    own = {"PATH": "/opt/bin:${PATH}", "WHO": "${KERNEL_USERNAME}", "COST": "5 $"}
    assert environment(HOST, asked, inherited, own) == {
        "PATH": "/opt/bin:/usr/bin",
        "HOME": "/home/ada",
        "KERNEL_USERNAME": "ada",
        "LANG": "de_DE",
        "WHO": "ada",
        "COST": "5 $",
    }


async def test_another_server_is_told_that_it_cannot_have_such_kernels() -> None:
    stanza = {"provisioner_name": PROVISIONER, "config": {"host": "lab"}}
    spec = KernelSpec(argv=["python"], metadata={"kernel_provisioner": stanza})
    provisioner = SSHProvisioner(
        kernel_id="k", kernel_spec=spec, parent=AsyncKernelManager(kernel_name="k")
    )
    with pytest.raises(ValueError, match="kernelkeep's own server"):
        await provisioner.pre_launch()
    assert provisioner.resolve_path("/etc/passwd") is None
