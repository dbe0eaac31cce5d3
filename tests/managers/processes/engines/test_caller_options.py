"""What whoever starts a kernel may say of its engine's options, and what becomes of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from jupyter_client.kernelspec import KernelSpec

from app.keeper.limits import NO_LIMITS
from app.managers.errors import KernelStartFailed
from app.managers.processes.engines.caller_options import (
    EngineOptionRefused,
    check_given,
    settled,
)
from app.managers.processes.engines.docker_options import docker_options
from app.managers.processes.engines.kinds import KINDS
from app.managers.processes.engines.kubernetes_options import kubernetes_options
from app.managers.processes.engines.slurm_options import arguments, slurm_options
from app.managers.processes.hosts.options import PROVISIONER, SSHOptions, options_of

DOCKER = {
    "image": "kernels:1",
    "memory": "1GiB",
    "env": {"A": "a"},
    "caller_may_set": {
        "image": ["kernels:1", "kernels:2"],
        "memory": {"max": "8GiB"},
        "cpus": {"min": 0.5, "max": 4},
        "pids": {"min": 32},
        "read_only": [True],
        "env.MODEL": ["small", "large"],
        "user": {"max": 9},
        "network": ["lab", 5],
    },
}

PODS = {
    "image": "kernels:1",
    "namespace": "kernels",
    "limits": {"memory": "4Gi", "cpu": 2},
    "caller_may_set": {
        "limits.memory": {"max": "8Gi"},
        "limits.nvidia.com/gpu": {"max": 2},
        "limits.cpu": {"min": 0, "max": "1500m"},
        "gpus": [1, 2],
        "requests": ["all"],
    },
}


def spec(config: Any, engine: str = "kernelkeep-docker") -> KernelSpec:
    stanza = {"provisioner_name": engine, "config": config}
    return KernelSpec(
        argv=["a"], resource_dir="/there", metadata={"other": 1, "kernel_provisioner": stanza}
    )


def pods(config: Any = PODS) -> KernelSpec:
    return spec(config, "kernelkeep-kubernetes")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"memory": "8GiB"},
        {"memory": 2**33},
        {"memory": "8.000GiB", "cpus": 4, "image": "kernels:2"},
        {"cpus": 0.5},
        {"pids": 10**6},
        {"read_only": True},
        {"env.MODEL": "large"},
    ],
)
def test_what_is_named_may_be_set(given: dict[str, Any]) -> None:
    check_given(spec(DOCKER), given)
    options = docker_options(settled(spec(DOCKER), given))
    assert options is not None
    for name, value in given.items():
        if name != "env.MODEL":
            assert getattr(options, name) == value
    assert options.env == ({"A": "a", "MODEL": "large"} if "env.MODEL" in given else {"A": "a"})


@pytest.mark.parametrize(
    ("given", "option", "why"),
    [
        ({"mounts": "/"}, "mounts", "does not name it"),
        ({"caller_may_set": "x"}, "caller_may_set", "does not name it"),
        ({"env": "x"}, "env", "does not name it"),
        ({"env.PATH": "x"}, "env.PATH", "does not name it"),
        ({"memory": "1GiB", "env.": "x"}, "env.", "does not name it"),
        ({"memory": "9GiB"}, "memory", "more than 8GiB"),
        ({"memory": "8.5GiB"}, "memory", "more than 8GiB"),
        ({"memory": 0}, "memory", "not a whole number of bytes"),
        ({"memory": "much"}, "memory", "not a size"),
        ({"memory": True}, "memory", "not a number"),
        ({"cpus": 0.4}, "cpus", "less than 0.5"),
        ({"cpus": 4.1}, "cpus", "more than 4"),
        ({"cpus": "4"}, "cpus", "not a number"),
        ({"cpus": math.nan}, "cpus", "not a number"),
        ({"cpus": math.inf}, "cpus", "not a number"),
        ({"pids": 64.5}, "pids", "not what the option takes"),
        ({"image": "kernels:3"}, "image", "not one of kernels:1, kernels:2"),
        ({"read_only": False}, "read_only", "not one of True"),
        ({"read_only": 1}, "read_only", "not one of True"),
        ({"env.MODEL": "huge"}, "env.MODEL", "not one of small, large"),
        ({"user": 5}, "user", "not what the option takes"),
        ({"network": 5}, "network", "not what the option takes"),
        ({"x" * 300: 5}, "x" * 100, "does not name it"),
    ],
)
def test_everything_else_is_refused_by_its_name(
    given: dict[str, Any], option: str, why: str
) -> None:
    with pytest.raises(EngineOptionRefused, match=why) as raised:
        check_given(spec(DOCKER), given)
    assert raised.value.details == {"option": option}
    assert (raised.value.status, raised.value.code) == (400, "engine_option_refused")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"limits.memory": "8Gi"}, ""),
        ({"limits.memory": "8192Mi", "limits.nvidia.com/gpu": 2, "gpus": 2}, ""),
        ({"limits.cpu": "1.5"}, ""),
        ({"limits.cpu": 0}, ""),
        ({"limits.memory": "9G"}, "more than 8Gi"),
        ({"limits.memory": 0}, "not above 0"),
        ({"limits.memory": "-1"}, "no quantity"),
        ({"limits.memory": False}, "no quantity"),
        ({"limits.cpu": 2}, "more than 1500m"),
        ({"gpus": True}, "not one of"),
        ({"requests": "all"}, "not what the option takes"),
    ],
)
def test_quantities_of_a_table_have_bounds_of_their_own(given: dict[str, Any], why: str) -> None:
    if why:
        with pytest.raises(EngineOptionRefused, match=why):
            check_given(pods(), given)
        return
    check_given(pods(), given)
    options = kubernetes_options(settled(pods(), given))
    assert options is not None
    named = {name.partition(".")[2]: value for name, value in given.items() if "." in name}
    assert options.limits == {**PODS["limits"], **named}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"time": "90"}, ""),
        ({"time": "1-12"}, ""),
        ({"time": "36:00:00", "memory": "8GiB", "cpus": 8}, ""),
        ({"time": "1-11:59:59"}, ""),
        ({"time": "90:59"}, ""),
        ({"time": "2161"}, "more than 1-12"),
        ({"time": "36:00:01"}, "more than 1-12"),
        ({"time": "1-12:00:01"}, "more than 1-12"),
        ({"time": "0"}, "not above 0"),
        ({"time": "0:0"}, "not above 0"),
        ({"time": "UNLIMITED"}, "not a time"),
        ({"time": True}, "not a time"),
        ({"time": 60}, "not what the option takes"),
        ({"memory": "9GiB"}, "more than 8GiB"),
        ({"cpus": 9}, "more than 8"),
        ({"partition": "gpu --wrap=id"}, "not one of"),
    ],
)
def test_jobs_of_slurm_have_times(given: dict[str, Any], why: str) -> None:
    may_set = {"time": {"max": "1-12"}, "memory": {"max": "8GiB"}, "cpus": {"max": 8}}
    config = {"caller_may_set": {**may_set, "partition": ["short", "long"]}}
    if why:
        with pytest.raises(EngineOptionRefused, match=why):
            check_given(spec(config, "kernelkeep-slurm"), given)
    else:
        check_given(spec(config, "kernelkeep-slurm"), given)


def test_many_values_are_told_in_part() -> None:
    config = {"image": "a", "caller_may_set": {"image": [f"i{number}" for number in range(99)]}}
    with pytest.raises(EngineOptionRefused, match=r"i19, …$"):
        check_given(spec(config), {"image": "b"})


def test_a_value_that_goes_with_no_other_is_refused_with_its_company() -> None:
    config = {**PODS, "caller_may_set": {"limits": [1], "limits.cpu": [1]}}
    with pytest.raises(EngineOptionRefused) as raised:
        check_given(pods(config), {"limits.cpu": 1, "limits": 1})
    assert raised.value.details["option"] == "limits"


@pytest.mark.parametrize(
    "other",
    [
        KernelSpec(argv=[]),
        spec({"caller_may_set": {"a": [1]}}, "local-provisioner"),
        spec({"caller_may_set": {"a": [1]}}, "kernelkeep-fork"),
    ],
)
def test_kernels_without_an_engine_have_no_such_options(other: KernelSpec) -> None:
    check_given(other, {})
    with pytest.raises(EngineOptionRefused, match="a: kernels of this kernelspec have no engine"):
        check_given(other, {"a": 1})


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({**DOCKER, "caller_may_set": ["image"]}, "caller_may_set in the kernelspec is wrong"),
        ({**DOCKER, "caller_may_set": {"memory": "8GiB"}}, "caller_may_set"),
        ({**DOCKER, "caller_may_set": {"memory": {"most": 1}}}, "caller_may_set"),
        ({**DOCKER, "caller_may_set": {"memory": {"max": "much"}}}, "memory: not a size"),
        ({**DOCKER, "imaeg": "x"}, "unknown field"),
        ("x", "are wrong"),
        ([1], "are wrong"),
    ],
)
def test_a_kernelspec_that_is_wrong_is_not_the_callers_fault(config: Any, why: str) -> None:
    with pytest.raises(KernelStartFailed, match=why):
        check_given(spec(config), {"memory": "1GiB"})


def test_what_is_settled_is_all_else_that_the_kernelspec_says() -> None:
    before = spec(DOCKER)
    found = settled(before, {"image": "kernels:2"})
    assert (found.argv, found.resource_dir, found.metadata["other"]) == (["a"], "/there", 1)
    config = found.metadata["kernel_provisioner"]["config"]
    assert config == {"image": "kernels:2", "memory": "1GiB", "env": {"A": "a"}}
    assert before.metadata["kernel_provisioner"]["config"] == DOCKER
    assert settled(found, {}) is found
    assert settled(KernelSpec(argv=[]), {"a": 1}).metadata == {}


def test_hosts_behind_ssh_have_such_options_too() -> None:
    config = {"host": "a", "caller_may_set": {"host": ["a", "b"], "port": {"max": 99}}}
    check_given(spec(config, "kernelkeep-ssh"), {"host": "b", "port": 22})
    with pytest.raises(EngineOptionRefused, match="not what the option takes"):
        check_given(spec(config, "kernelkeep-ssh"), {"port": 22.5})


class Kind(NamedTuple):
    model: type[Any]
    options_of: Callable[[KernelSpec], Any]


EVERY = {
    PROVISIONER: Kind(SSHOptions, options_of),
    **{name: Kind(kind.options, kind.options_of) for name, kind in KINDS.items()},
}
LEAST: dict[str, dict[str, Any]] = {
    "kernelkeep-ssh": {"host": "lab"},
    "kernelkeep-docker": {"image": "kernels:1"},
    "kernelkeep-kubernetes": {"image": "kernels:1", "namespace": "kernels"},
    "kernelkeep-slurm": {},
}


@pytest.mark.parametrize("engine", sorted(EVERY))
def test_of_no_engine_an_option_is_the_callers_that_is_not_named(engine: str) -> None:
    options = [field.name for field in msgspec.structs.fields(EVERY[engine].model)]
    assert {"python", "directory", "root_dir"} <= {*options}
    named = {**LEAST[engine], "caller_may_set": {"other": ["x"]}}
    for config in (LEAST[engine], named):
        for name in (*options, "env.A", "limits.memory", "caller_may_set"):
            with pytest.raises(EngineOptionRefused, match="does not name it") as raised:
                check_given(spec(config, engine), {name: "x"})
            assert raised.value.details == {"option": name}
    # Naming what there is not makes no option.
    with pytest.raises(EngineOptionRefused, match="not what the option takes"):
        check_given(spec(named, engine), {"other": "x"})


@pytest.mark.parametrize("engine", sorted(EVERY))
def test_of_every_engine_what_is_named_is_the_callers_and_only_as_it_is_named(engine: str) -> None:
    config = {**LEAST[engine], "caller_may_set": {"python": ["python3", "/opt/k/bin/python"]}}
    assert EVERY[engine].options_of(settled(spec(config, engine), {})).python == "python3"
    given = {"python": "/opt/k/bin/python"}
    check_given(spec(config, engine), given)
    assert EVERY[engine].options_of(settled(spec(config, engine), given)).python == given["python"]
    for wrong in ("python3; id", "$(id)", "", 1, True):
        with pytest.raises(EngineOptionRefused, match=r"not one of python3, /opt/k/bin/python$"):
            check_given(spec(config, engine), {"python": wrong})


def test_what_a_caller_sets_of_a_job_is_a_word_of_its_request() -> None:
    may_set = {"time": {"max": "1-12"}, "partition": ["short", "long"]}
    config = {"qos": "low", "caller_may_set": may_set}
    options = slurm_options(settled(spec(config, "kernelkeep-slurm"), {"time": "90"}))
    assert options is not None
    words = arguments(options, NO_LIMITS)
    assert {"--time=90", "--qos=low"} <= {*words}
    assert not any(word.startswith("--partition") for word in words)
