"""deploy/replicas/, deploy/kubernetes/replicas/ and the chart of deploy/helm/.

The chart is rendered by Helm itself. The replicas of deploy/replicas/ and their keeper run as
processes here; nginx's template is that of the drills (`tests.support.balancer`).
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from compose_spec import PyCompose
from jupyter_client.kernelspec import KernelSpec

from app.managers.processes.engines.kubernetes_options import kubernetes_options
from app.settings import Settings
from tests.deploy.test_manifests import KUBERNETES, interpolated, objects
from tests.support.executions import Executions
from tests.support.postgresql import PostgreSQL
from tests.support.proxies import DEPLOY
from tests.support.replicas import Replicas
from tests.support.rest import RestClient
from tests.support.server import REPOSITORY

COMPOSE = DEPLOY / "replicas/compose.yaml"
CHART = DEPLOY / "helm/kernelkeep"
MANIFESTS = DEPLOY / "kubernetes/replicas"

Object = dict[str, Any]


def checked(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Every variable of ours is an option, and has a value that it takes."""
    ours = {name: value for name, value in environment.items() if name.startswith("KERNELKEEP_")}
    ours["KERNELKEEP_HOST"] = "0.0.0.0"
    for name in ours:
        assert name.removeprefix("KERNELKEEP_").lower() in Settings.model_fields
    with monkeypatch.context() as patch:
        for name, value in ours.items():
            patch.setenv(name, value)
        return Settings()


# Compose


def test_compose_yaml_has_three_replicas_that_share_what_they_have_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Compose takes YAML's merge keys, which the schema does not know.
    compose = yaml.safe_load(interpolated(COMPOSE))
    PyCompose.from_yaml(yaml.safe_dump(compose)).validate()
    services = compose["services"]
    keeper, nginx = services["keeper"], services["nginx"]
    # The image's variables are those of a container with one server: kernels end with it there.
    assert "KERNELKEEP_ON_SHUTDOWN=stop" in (REPOSITORY / "Dockerfile").read_text().split()
    script = DEPLOY / "image" / keeper["entrypoint"][-1]
    assert script.stat().st_mode & 0o111
    addresses = []
    for name in ("one", "two", "three"):
        service = services[name]
        assert service["pid"] == "service:keeper"
        assert service["volumes"] == keeper["volumes"]
        assert service["image"] == keeper["image"]
        addresses.append(service["networks"]["default"]["ipv4_address"])
        settings = checked(service["environment"], monkeypatch)
        assert settings.replicated
        assert settings.on_shutdown == "keep"
        assert settings.replica_name == name
    # Nobody else is given one of their addresses, in whichever order containers start.
    (pool,) = compose["networks"]["default"]["ipam"]["config"]
    others = IPv4Network(pool["ip_range"])
    assert others.subnet_of(IPv4Network(pool["subnet"]))
    assert not any(IPv4Address(one) in others for one in addresses)
    told = nginx["environment"]
    assert [told[name] for name in ("ONE", "TWO", "THREE")] == [f"{ip}:8888" for ip in addresses]
    # The proxy waits longer than the service is silent.
    silence = int(told["TIMEOUT"].removesuffix("s"))
    assert settings.execution_wait_limit < silence
    assert settings.websocket_ping_interval < silence
    assert settings.stream_keepalive < silence
    template = (DEPLOY / "replicas/nginx.conf.template").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", template)) == set(told)
    for service in services.values():
        for source in (volume.partition(":")[0] for volume in service["volumes"]):
            there = (*compose["volumes"], "./certificates")  # which whoever deploys brings
            assert source in there or (COMPOSE.parent / source).exists()


@pytest.fixture
def replicas() -> Iterator[Replicas]:
    with PostgreSQL() as postgresql, Replicas(postgresql.new_database()) as replicas:
        yield replicas


@pytest.fixture
def keeper(replicas: Replicas) -> Iterator[subprocess.Popen[bytes]]:
    """As the container of the keeper runs it, before there is a replica."""
    home = replicas.home
    with subprocess.Popen(
        [sys.executable, "-m", "app.keeper", str(home.state_dir), "--stay"],
        cwd=REPOSITORY,
        env={**home.environment(), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.terminate()


async def test_kernels_are_in_the_keepers_container_and_outlive_all_replicas(
    replicas: Replicas, keeper: subprocess.Popen[bytes]
) -> None:
    first = await asyncio.to_thread(replicas.start, "one")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        await Executions(rest, kernel["id"]).run("import os; x = os.getppid()")
    await asyncio.to_thread(replicas.end, "one")
    second = await asyncio.to_thread(replicas.start, "two")
    async with RestClient(second.url, replicas.token) as rest:
        executions = Executions(rest, kernel["id"])
        async with asyncio.timeout(60):
            done = await executions.run(f"assert x == os.getppid() == {keeper.pid}, x")
        assert done["state"] == "ok"
        await rest.delete(kernel["id"])
    assert keeper.poll() is None


# Kubernetes


def by_kind(found: list[Object]) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def rendered(values: Object | None = None, name: str = "kernelkeep") -> list[Object]:
    """What Helm makes of the chart."""
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values or {}, name=name, namespace="kernelkeep")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one is not None]


def environment_of(deployment: Object) -> dict[str, str]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    found = {item["name"]: item.get("value", "secret") for item in container["env"]}
    found["KERNELKEEP_REGISTRY_URL"] = "postgresql://kernelkeep:secret@postgresql/kernelkeep"
    # As the cluster replaces them: they are set before.
    names = [*found]
    for name, value in found.items():
        if "$(POD_IP)" in value:
            assert names.index("POD_IP") < names.index(name)
            found[name] = value.replace("$(POD_IP)", "192.0.2.7")
    return found


def test_the_manifests_set_options_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, budget, service = objects(MANIFESTS / "kernelkeep.yaml")
    (policy,) = objects(MANIFESTS / "networkpolicy.yaml")
    pod = deployment["spec"]["template"]["spec"]
    settings = checked(environment_of(deployment), monkeypatch)
    ports = {each["name"]: each["containerPort"] for each in pod["containers"][0]["ports"]}
    listens = [int(one.split(":")[1]) for one in (settings.replica_listen, settings.agent_listen)]
    assert [*ports.values()] == [settings.port, *listens]
    assert settings.replica_address == "192.0.2.7:8889"
    assert settings.agent_addresses == ["192.0.2.7:8890", "kernelkeep.kernelkeep.svc:8890"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {"http", "keepers"}
    assert settings.on_shutdown == "keep"
    # Never fewer than the replicas that there are to be, and one at a time.
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert budget["spec"]["maxUnavailable"] == 1
    assert pod["enableServiceLinks"] is False
    assert pod["terminationGracePeriodSeconds"] > 2 * settings.shutdown_wait_time + 5
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        *(deployment["spec"]["selector"], budget["spec"]["selector"]),
        *({"matchLabels": service["spec"]["selector"]}, policy["spec"]["podSelector"]),
    ):
        assert selector["matchLabels"].items() <= labels.items()
    let_in = {port["port"] for each in policy["spec"]["ingress"] for port in each["ports"]}
    assert let_in == {*ports.values()}


def test_the_chart_is_that_of_the_manifests() -> None:
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [each["error"] for each in found["messages"]] == ["icon is recommended"]
    chart = by_kind(rendered())
    for one in chart.values():
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    plain = by_kind(
        [one for path in sorted(MANIFESTS.iterdir()) for one in objects(path)]
        + objects(DEPLOY / "kubernetes/pods/rbac.yaml")
    )
    deployment = chart["Deployment", "kernelkeep"]
    # In a namespace with other releases its name is not "python-pod".
    volume = deployment["spec"]["template"]["spec"]["volumes"][1]
    assert volume.pop("configMap") == {"name": "kernelkeep-python-pod"}
    volume["configMap"] = {"name": "python-pod"}
    for key, one in plain.items():
        assert chart[key] == one, key
    rest = {*chart} - {*plain}
    assert rest == {("ConfigMap", "kernelkeep-python-pod"), ("NetworkPolicy", "kernelkeep-kernels")}
    data = chart["ConfigMap", "kernelkeep-python-pod"]["data"]
    options = kubernetes_options(KernelSpec(**json.loads(data["kernel.json"])))
    assert options is not None
    assert options.namespace == "kernels"
    mounts = deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert options.template == f"{mounts[1]['mountPath']}/pod.yaml"
    assert yaml.safe_load(data["pod.yaml"])["kind"] == "Pod"


def test_the_charts_values_go_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "replicas": 5,
        "image": {"repository": "registry.example.org/kernelkeep", "pullSecrets": ["pull"]},
        "secret": "other",
        "allowedHosts": ["kernels.example.org"],
        "rootPath": "/lab",
        "ipv6": True,
        "options": {"max_kernels": "50", "log_level": "debug"},
        "networkPolicy": {"enabled": False},
        "kernels": {"namespace": "pods", "template": {"spec": {"priority": 1}}},
    }
    chart = by_kind(rendered(values, "lab"))
    for one in chart.values():
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert not any(kind == "NetworkPolicy" for kind, _ in chart)
    deployment = chart["Deployment", "lab"]
    assert deployment["spec"]["replicas"] == 5
    pod = deployment["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["containers"][0]["image"] == "registry.example.org/kernelkeep:latest"
    assert pod["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "other"
    settings = checked(environment_of(deployment), monkeypatch)
    assert settings.replica_address == "[192.0.2.7]:8889"
    assert settings.agent_addresses == ["[192.0.2.7]:8890", "lab.kernelkeep.svc:8890"]
    assert settings.replica_listen == "[::]:8889"
    assert (settings.root_path, settings.max_kernels) == ("/lab", 50)
    assert "kernels.example.org" in settings.allowed_hosts
    assert chart["Role", "lab"]["metadata"]["namespace"] == "pods"


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 3},
        {"replicas": 0},
        {"rootPath": "lab/"},
        {"options": {"max_kernels": 50}},
        {"options": {"token": "in the clear"}},
        {"options": {"registry_url": "postgresql://"}},
        {"image": {"pullPolicy": "never"}},
        {"kernels": {"namespace": "Not A Name"}},
    ],
)
def test_values_that_the_chart_cannot_use_are_refused(values: Object) -> None:
    with pytest.raises(helm.HelmError):
        rendered(values)


def test_every_value_is_described() -> None:
    """By the comment before it, or that of the mapping that it is in."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    top = [number for number, line in enumerate(lines) if re.match(r"[a-zA-Z]", line)]
    undescribed = [
        lines[number]
        for number in top
        if not lines[number - 1].startswith("#") and lines[number] not in ("image:", "kernels:")
    ]
    assert undescribed == ["networkPolicy:"]
    version = re.search(r'^appVersion: "(.*)"$', (CHART / "Chart.yaml").read_text(), re.MULTILINE)
    assert version is not None
    assert f'__version__ = "{version[1]}"' in Path(REPOSITORY, "app/__init__.py").read_text()
