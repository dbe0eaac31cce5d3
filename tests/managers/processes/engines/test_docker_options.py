"""What a kernelspec may say of a container, what is refused, and what the engine is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.managers.errors import KernelStartFailed
from app.managers.processes.engines.docker_options import (
    PROVISIONER,
    DockerOptions,
    container_of,
    docker_options,
)


def spec(config: Any, provisioner: str = PROVISIONER) -> KernelSpec:
    stanza = {"provisioner_name": provisioner, "config": config}
    return KernelSpec(argv=[], metadata={"kernel_provisioner": stanza})


def asked(**more: Any) -> dict[str, Any]:
    options = docker_options(spec({"image": "lab/kernels:1", **more}))
    assert isinstance(options, DockerOptions)
    return container_of(options, {"a": "b"})


def test_other_kernelspecs_are_left_alone() -> None:
    assert docker_options(KernelSpec(argv=[])) is None
    assert docker_options(spec({}, "local-provisioner")) is None


def test_an_image_is_enough_and_gets_little() -> None:
    container = asked()
    host = container["HostConfig"]
    assert container["Image"] == "lab/kernels:1"
    assert container["Labels"] == {"a": "b"}
    assert (container["Entrypoint"], container["Cmd"][0]) == (["python3"], "-c")
    assert container["Env"] == ["HOME=/tmp"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], [])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["ReadonlyRootfs"], host["PidsLimit"]) == (True, 1024)
    assert not {"Memory", "NanoCpus", "ShmSize", "DeviceRequests", "NetworkMode"} & {*host}
    assert "secret" not in json.dumps(container)


def test_it_gets_what_the_kernelspec_says() -> None:
    mount = {"source": "data", "target": "/data", "type": "volume", "read_only": False}
    container = asked(
        **{"memory": "2GiB", "shm_size": 2**26, "cpus": 1.5, "gpus": "all", "network": "lab"},
        **{"read_only": False, "tmpfs": {}, "mounts": [mount], "env": {"A": "b"}},
        **{"capabilities": ["SYS_PTRACE"], "user": "1000:100", "pids": 99},
    )
    host = container["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["ShmSize"]) == (2**31, 2**31, 2**26)
    assert (host["NanoCpus"], host["NetworkMode"], host["PidsLimit"]) == (15 * 10**8, "lab", 99)
    assert host["DeviceRequests"][0]["Count"] == -1
    (made,) = host["Mounts"]
    assert made == {"Type": "volume", "Source": "data", "Target": "/data", "ReadOnly": False}
    assert (container["Env"], container["User"]) == (["A=b"], "1000:100")
    assert asked(gpus=2)["HostConfig"]["DeviceRequests"][0]["Count"] == 2
    assert asked(tmpfs={})["Env"] == []


@pytest.mark.parametrize(
    "more",
    [
        {"image": ""},
        {"image": "-v"},
        {"image": "a b"},
        {"image": "k:1\n"},
        {"user": "ada\n"},
        {"env": {"A\n": "b"}},
        {"docker": "/var/run/docker.sock"},
        {"address": "lab"},
        {"address": "lab:1;x"},
        {"memory": "much"},
        {"memory": 5},
        {"shm_size": "-1"},
        {"cpus": 0},
        {"pids": 1},
        {"gpus": 0},
        {"user": "-u"},
        {"python": "a\0b"},
        {"env": {"A=B": "c"}},
        {"mounts": [{"source": "/a", "target": "b"}]},
        {"mounts": [{"source": "/a", "target": "/b", "propagation": "shared"}]},
        {"capabilities": ["all of them"]},
        {"privileged": True},
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(KernelStartFailed, match="kernelkeep-docker"):
        asked(**more)
