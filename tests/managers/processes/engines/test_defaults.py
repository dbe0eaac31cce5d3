"""What the settings say of engines' options: where it counts, and what is refused."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.config_file import CONFIG_FILE
from app.managers.errors import KernelStartFailed
from app.managers.handover.adoption import find_spec
from app.managers.processes.engines.caller_options import (
    EngineOptionRefused,
    check_given,
    settled,
)
from app.managers.processes.engines.defaults import defaults_of, with_defaults
from app.managers.processes.engines.docker_options import docker_options
from app.managers.processes.engines.kinds import KINDS, chosen
from app.managers.processes.engines.kubernetes_options import kubernetes_options
from app.managers.processes.engines.slurm_options import slurm_options
from app.managers.processes.hosts.options import PROVISIONER, options_of
from app.managers.processes.specs import SpecManager, kernel_spec_manager
from tests.support.commands import Commands
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.lively import started
from tests.support.refusals import refusal, refused
from tests.support.rest import RestClient
from tests.support.sshd import Sshd

SECRET = "s3cret"
OPTIONS_OF = {
    "ssh": options_of,
    "docker": docker_options,
    "kubernetes": kubernetes_options,
    "slurm": slurm_options,
}


def spec(engine: str, **config: Any) -> KernelSpec:
    stanza = {"provisioner_name": f"kernelkeep-{engine}", "config": config}
    return KernelSpec(
        argv=["a"], resource_dir="/there", metadata={"other": 1, "kernel_provisioner": stanza}
    )


def test_there_are_all_engines() -> None:
    assert {f"kernelkeep-{engine}" for engine in OPTIONS_OF} == {PROVISIONER, *KINDS}


@pytest.mark.parametrize(
    ("engine", "table", "config", "found"),
    [
        (
            "ssh",
            {"host": "far", "user": "ada", "python": "~/k/bin/python"},
            {"host": ["one", "two"], "user": None},
            {"host": ["one", "two"], "user": None, "python": "~/k/bin/python"},
        ),
        (
            "docker",
            {"image": "kernels:1", "memory": "2GiB", "env": {"A": "a"}},
            {"memory": "4GiB", "env": {"B": "b"}},
            # A table of the kernelspec's is the whole table.
            {"image": "kernels:1", "memory": "4GiB", "env": {"B": "b"}},
        ),
        (
            "kubernetes",
            {"namespace": "kernels", "limits": {"cpu": 2}, "grace": 5},
            {"image": "kernels:1", "grace": 6},
            {"image": "kernels:1", "namespace": "kernels", "limits": {"cpu": 2}, "grace": 6},
        ),
        (
            "slurm",
            {"partition": "short", "time": "1:00:00", "cpus": 2},
            {"time": "10", "cpus": None},
            {"partition": "short", "time": "10", "cpus": None},
        ),
    ],
)
def test_they_are_below_those_of_the_kernelspec(
    engine: str, table: dict[str, Any], config: dict[str, Any], found: dict[str, Any]
) -> None:
    others: dict[str, dict[str, Any]] = {"docker": {"user": "1"}, "slurm": {"qos": "low"}}
    defaults = defaults_of({**others, engine: table})
    before = spec(engine, **config)
    after = with_defaults(before, defaults)
    options = OPTIONS_OF[engine](after)
    assert options is not None
    assert {name: getattr(options, name) for name in found} == found
    assert (after.argv, after.resource_dir, after.metadata["other"]) == (["a"], "/there", 1)
    assert before.metadata["kernel_provisioner"]["config"] == config
    if engine != "ssh":
        kernels = chosen(after, {})
        assert kernels is not None
        assert kernels.options == options


def test_what_is_not_an_engines_is_left_alone() -> None:
    defaults = defaults_of({"docker": {"image": "kernels:1"}, "slurm": {}})
    for other in (
        KernelSpec(argv=[]),
        KernelSpec(metadata={"kernel_provisioner": ["kernelkeep-docker"]}),
        KernelSpec(
            metadata={"kernel_provisioner": {"provisioner_name": "kernelkeep-docker", "config": 1}}
        ),
        spec("fork"),
        spec("ssh", host="lab"),
        spec("slurm", partition="short"),
    ):
        assert with_defaults(other, defaults) is other
    bare = KernelSpec(metadata={"kernel_provisioner": {"provisioner_name": "kernelkeep-docker"}})
    options = docker_options(with_defaults(bare, defaults))
    assert options is not None
    assert options.image == "kernels:1"


def test_what_a_caller_may_set_is_above_both() -> None:
    defaults = defaults_of({"kubernetes": {"limits": {"cpu": 2}, "gpus": 1}})
    may_set = {"limits.memory": {"max": "8Gi"}, "gpus": [1, 2]}
    config = {"image": "k:1", "namespace": "k", "caller_may_set": may_set}
    merged = with_defaults(spec("kubernetes", **config), defaults)
    given: dict[str, Any] = {"limits.memory": "4Gi", "gpus": 2}
    check_given(merged, given)
    options = kubernetes_options(settled(merged, given))
    assert options is not None
    assert (options.limits, options.gpus) == ({"cpu": 2, "memory": "4Gi"}, 2)
    assert defaults["kernelkeep-kubernetes"]["limits"] == {"cpu": 2}
    # What the settings alone name is no more the caller's than what the kernelspec names.
    with pytest.raises(EngineOptionRefused, match="does not name it"):
        check_given(merged, {"limits.cpu": 1})


def test_what_neither_says_is_missing_still() -> None:
    with pytest.raises(KernelStartFailed, match="missing required field `image`"):
        docker_options(with_defaults(spec("docker"), defaults_of({"docker": {"pids": 99}})))


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"podman": {"image": "k"}}, "podman: no engine; there are docker, kubernetes, slurm, ssh"),
        ({"": {}}, "'': no engine"),
        ({"a\nb": {}}, r"'a\nb': no engine"),
        ({"fork": {}}, "fork: no engine"),
        ({"slurm": {"partitoin": "short"}}, "slurm.partitoin: no option of this engine; is "),
        ({"slurm": {"a\nb": 1}}, r"slurm.'a\nb': no option of this engine"),
        ({"slurm": {"caller_may_set": {}}}, "slurm.caller_may_set: a kernelspec alone says"),
        ({"slurm": {"cpus": "2"}}, "slurm.cpus: Expected `int"),
        ({"slurm": {"cpus": True}}, "slurm.cpus: Expected `int"),
        ({"slurm": {"partition": f"{SECRET} --wrap=id"}}, "slurm.partition: Expected `str`"),
        ({"slurm": {"memory": SECRET}}, "slurm.memory: not a size"),
        ({"docker": {"image": "-v"}}, "docker.image: Expected `str` matching"),
        ({"docker": {"memory": SECRET}}, "docker.memory: not a size"),
        ({"docker": {"pull": SECRET}}, "docker.pull: not what the option takes"),
        ({"docker": {"pull_timeout": math.nan}}, "docker.pull_timeout: Expected `float`"),
        ({"docker": {"mounts": [{SECRET: 1}]}}, "docker.mounts: "),
        ({"docker": {"env": {"A": [SECRET]}}}, "docker.env: Expected `str`, got `array` - at"),
        ({"docker": {"env": {f"1{SECRET}": "a"}}}, "docker.env: Expected `str` matching"),
        ({"docker": {"image": "k:1"}, "ssh": {"port": 0}}, "ssh.port: Expected `int` >= 1"),
        ({"ssh": {"host": f"-oProxyCommand={SECRET}"}}, "ssh.host: the name of a host or user"),
        ({"ssh": {"host": []}}, "ssh.host: Expected `array`"),
        ({"ssh": {"user": f"{SECRET}@b"}}, "ssh.user: the name of a host or user"),
        (
            {"kubernetes": {"limits": {"memory": SECRET}}},
            "kubernetes.limits: no quantity, like 500m, 2 or 4Gi - at `$.limits.memory`",
        ),
        ({"kubernetes": {"namespace": "A"}}, "kubernetes.namespace: Expected `str` matching"),
    ],
)
def test_what_cannot_be_is_told_in_a_line_that_names_it(
    tables: dict[str, dict[str, Any]], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}") as raised:
        defaults_of(tables)
    assert str(raised.value).isprintable()
    assert SECRET not in str(raised.value)


def test_every_option_that_a_kernelspec_may_have_may_be_one() -> None:
    tables: dict[str, dict[str, Any]] = {
        "ssh": {"host": ["a", "b"], "path": "k", "directory": "/data", "root_dir": ""},
        "docker": {
            "docker": "unix:///run/podman/podman.sock",
            "mounts": [{"source": "/data", "target": "/data"}],
            "tmpfs": {"/tmp": ""},
            "gpus": "all",
        },
        "kubernetes": {"volumes": [{"claim": "${owner}", "target": "/home"}], "user": None},
        "slurm": {"shared": "~/shared", "gpus": "a100:2", "root_dir": None},
    }
    assert defaults_of(tables) == {f"kernelkeep-{name}": table for name, table in tables.items()}


async def test_a_kernel_that_runs_keeps_those_that_it_was_started_with(tmp_path: Path) -> None:
    stanza = {"provisioner_name": PROVISIONER, "config": {"host": "lab"}}
    write_kernelspec(tmp_path, "far", Spec(metadata={"kernel_provisioner": stanza}))
    places: dict[str, Any] = {
        "kernel_dirs": [str(tmp_path / "kernels")],
        "ensure_native_kernel": False,
    }

    def manager(**table: Any) -> SpecManager:
        return kernel_spec_manager(defaults=defaults_of({"ssh": table}), **places)

    before = manager(directory="/before")
    assert before.written("far").metadata["kernel_provisioner"] == stanza
    record: Any = SimpleNamespace(id="k", name="far", spec=before.get_kernel_spec("far").to_dict())
    for next_one in (manager(directory="/after"), manager(), before):
        options = options_of(await find_spec(next_one, record))
        assert options is not None
        assert (options.host, options.directory) == ("lab", "/before")


def test_the_service_does_not_start_with_a_wrong_one(commands: Commands, home: Home) -> None:
    (home.path / CONFIG_FILE).write_text(f'[engines.docker]\nmemory = "{SECRET}"\n')
    line = refusal(refused(commands, "--port", "0", home=home))
    assert line.startswith("--engines: docker.memory: not a size")
    assert SECRET not in line


async def test_a_kernel_behind_ssh_has_what_the_settings_say(servers: Servers, home: Home) -> None:
    lab = Sshd(home.path / "far")
    written = {"host": "lab", "directory": str(lab.directory)}
    stanza = {"provisioner_name": PROVISIONER, "config": written}
    write_kernelspec(home.jupyter_path, "far", Spec(metadata={"kernel_provisioner": stanza}))
    table = {
        "host": "nowhere",
        "ssh_config": str(lab.config),
        "python": sys.executable,
        "path": str(lab.far),
        "directory": "/",
    }
    servers.env = {"KERNELKEEP_ENGINES": json.dumps({"ssh": table})}
    try:
        lab.start()
        async with started(servers) as server, RestClient(server.url, server.token) as rest:
            kernel_id = (await rest.start_kernel("far"))["id"]
            # The kernelspec's own directory, at a host and with a python of the settings.
            run = await Executions(rest, kernel_id).run("cwd")
            assert run["outputs"][0]["text"] == f"{lab.directory}\n"
            assert (lab.far / "services").is_dir()
            # Clients are shown what the file has, in both views.
            one = (await rest.request("GET", "/api/kernelspecs/far")).json()
            every = (await rest.request("GET", "/api/kernelspecs")).json()["kernelspecs"]["far"]
            assert one == every
            assert one["spec"]["metadata"]["kernel_provisioner"]["config"] == written
            # So has its next process.
            await rest.restart(kernel_id)
            run = await Executions(rest, kernel_id).run("cwd")
            assert run["outputs"][0]["text"] == f"{lab.directory}\n"
            await rest.delete(kernel_id)
    finally:
        lab.remove()
