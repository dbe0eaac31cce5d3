"""What a kernelspec may say of a host, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.managers.errors import KernelStartFailed
from app.managers.processes.hosts.options import PROVISIONER, SSHOptions, options_of


def spec(config: Any, provisioner: str = PROVISIONER) -> KernelSpec:
    stanza = {"provisioner_name": provisioner, "config": config}
    return KernelSpec(argv=[], metadata={"kernel_provisioner": stanza})


def test_a_host_is_enough() -> None:
    options = options_of(spec({"host": "lab.example.org"}))
    assert options is not None
    assert (options.name, options.python, options.directory) == ("lab.example.org", "python3", "~")
    named = options_of(spec({"host": "lab.example.org", "user": "ada"}))
    assert named is not None
    assert named.name == "ada@lab.example.org"


def test_several_hosts_are_named_once_each() -> None:
    options = options_of(spec({"host": ["a", "b", "a"], "user": "ada"}))
    assert options is not None
    assert (options.hosts, options.name) == (["a", "b"], "ada@a, b")
    one = options_of(spec({"host": "b", "user": "ada"}))
    assert one is not None
    assert (options.at("b"), options.at("b").key) == (one, one.key)


def test_other_kernelspecs_are_left_alone() -> None:
    assert options_of(KernelSpec(argv=[])) is None
    for stanza in (None, "kernelkeep-ssh", ["kernelkeep-ssh"]):
        assert options_of(KernelSpec(metadata={"kernel_provisioner": stanza})) is None
    assert options_of(spec({}, "local-provisioner")) is None


def test_kernels_share_a_keeper_whatever_directory_they_work_in() -> None:
    keys = []
    apart = ({"user": "ada"}, {"port": 2222}, {"path": "/srv"})
    for more in ({}, {"directory": "/data"}, {"root_dir": "~/books"}, *apart):
        options = options_of(spec({"host": "lab", **more}))
        assert options is not None
        keys.append(options.key)
        assert SSHOptions.of_key(options.key).key == options.key
    assert keys[0] == keys[1] == keys[2]
    assert len({*keys}) == 4


@pytest.mark.parametrize(
    "config",
    [
        {},
        None,
        {"host": 1},
        {"host": ""},
        {"host": []},
        {"host": ["lab", "-oProxyCommand=id"]},
        {"host": ["lab", 1]},
        {"host": "-oProxyCommand=x"},
        {"host": "a b"},
        {"host": "lab", "user": "a@b"},
        {"host": "lab", "port": 0},
        {"host": "lab", "python": ""},
        {"host": "lab", "path": "a\0b"},
        {"host": "lab", "passwort": "x"},
    ],
)
def test_what_cannot_be_is_refused(config: Any) -> None:
    with pytest.raises(KernelStartFailed, match=PROVISIONER):
        options_of(spec(config))
