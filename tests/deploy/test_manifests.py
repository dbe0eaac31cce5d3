"""deploy/compose.yaml and deploy/kubernetes/: valid by their schemas, and by our options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from compose_spec import PyCompose
from jupyter_client.kernelspec import KernelSpec

from app.managers.processes.engines.caller_options import check_given, settled
from app.managers.processes.engines.kubernetes_options import kubernetes_options
from app.managers.processes.engines.kubernetes_pods import Named, Share, pod_of
from app.settings import Settings
from tests.support.proxies import DEPLOY, PREFIX
from tests.support.server import REPOSITORY

KUBERNETES = "1.34"
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
PODS = DEPLOY / "kubernetes" / "pods"


def interpolated(path: Path) -> str:
    """A Compose file with its variables replaced, as Compose does before it looks at the rest."""
    return re.sub(r"\$\{\w+(?::([-?])([^}]*))?\}", _value, path.read_text())


def _value(variable: re.Match[str]) -> str:
    return variable[2] if variable[1] == "-" else "a-value-of-the-environment"


@pytest.mark.parametrize(
    "name",
    [
        "nginx/kernelkeep.conf.template",
        "haproxy/haproxy.cfg",
        "caddy/Caddyfile",
        "traefik/kernelkeep.yaml",
    ],
)
def test_the_document_shows_the_configurations_that_are_tested(name: str) -> None:
    assert (DEPLOY / name).read_text() in (REPOSITORY / "docs/deploy.md").read_text()


def objects(path: Path) -> list[dict[str, Any]]:
    return [*yaml.safe_load_all(path.read_text())]


def check_options(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Every variable of ours is an option, and has a value that it takes."""
    ours = {name: value for name, value in environment.items() if name.startswith("KERNELKEEP_")}
    assert ours
    for name, value in ours.items():
        assert name.removeprefix("KERNELKEEP_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    # A container ends as a whole.
    assert ours["KERNELKEEP_ON_SHUTDOWN"] == "stop"
    assert "KERNELKEEP_ON_SHUTDOWN=stop" in (REPOSITORY / "Dockerfile").read_text().split()
    # Of what the image sets, this is what the others are checked against.
    monkeypatch.setenv("KERNELKEEP_HOST", "0.0.0.0")
    return Settings()


def test_compose_yaml_is_valid_and_sets_options_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = interpolated(DEPLOY / "compose.yaml")
    PyCompose.from_yaml(text).validate()
    services = yaml.safe_load(text)["services"]
    settings = check_options(services["kernelkeep"]["environment"], monkeypatch)
    assert settings.root_path == PREFIX
    template = (DEPLOY / "nginx/kernelkeep.conf.template").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", template)) == set(services["nginx"]["environment"])
    for service in services.values():
        for source in (volume.partition(":")[0] for volume in service["volumes"]):
            # Whoever deploys brings the certificates.
            assert source in ("data", "./certificates") or (DEPLOY / source).exists()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_kubernetes_manifests_are_valid(path: Path) -> None:
    for each in objects(path):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_the_pod_sets_options_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stateful_set, service = objects(DEPLOY / "kubernetes/kernelkeep.yaml")
    pod = stateful_set["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {item["name"]: item.get("value", "secret") for item in container["env"]}
    settings = check_options(environment, monkeypatch)
    (port,) = container["ports"]
    assert (port["name"], port["containerPort"]) == ("http", settings.port)
    # A Service of this name would otherwise put its address into KERNELKEEP_PORT.
    assert service["metadata"]["name"] == "kernelkeep"
    assert pod["enableServiceLinks"] is False
    assert stateful_set["spec"]["replicas"] == 1
    assert pod["terminationGracePeriodSeconds"] > 2 * settings.shutdown_wait_time


def test_the_service_of_pods_sets_options_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    _, deployment, service = objects(PODS / "kernelkeep.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for item in container["env"]:
        name = item["name"]
        if name.startswith("KERNELKEEP_"):
            assert name.removeprefix("KERNELKEEP_").lower() in Settings.model_fields
        monkeypatch.setenv(name, item.get("value", "secret"))
    monkeypatch.setenv("KERNELKEEP_HOST", "0.0.0.0")
    settings = Settings()
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": settings.port, "keepers": int(settings.agent_listen.split(":")[1])}
    where = service["metadata"]
    address = f"{where['name']}.{where['namespace']}.svc:{ports['keepers']}"
    assert settings.agent_addresses == [address]
    # Kernels outlive the server, and the next one has its files.
    assert settings.on_shutdown == "keep"
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert pod["enableServiceLinks"] is False


def test_the_example_of_a_kernelspec_makes_a_pod_that_the_policies_know() -> None:
    (config,) = objects(PODS / "kernelspec.yaml")
    spec = KernelSpec(**json.loads(config["data"]["kernel.json"]))
    given: dict[str, Any] = {"limits.memory": "8Gi", "limits.cpu": 0.5}
    check_given(spec, given)
    options = kubernetes_options(settled(spec, given))
    assert options is not None
    assert options.limits == {"memory": "8Gi", "cpu": 0.5}
    mounted = objects(PODS / "kernelkeep.yaml")[1]["spec"]["template"]["spec"]["containers"][0]
    (path,) = [
        each["mountPath"] for each in mounted["volumeMounts"] if each["name"] == "kernelspec"
    ]
    assert options.template == f"{path}/pod.yaml"
    template = yaml.safe_load(config["data"]["pod.yaml"])
    pod = pod_of(template, options, Named("s", "k", "k", "ada", 1), Share())
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    volumes = pod["spec"]["volumes"]
    assert volumes[0] == {"name": "home", "persistentVolumeClaim": {"claimName": "home-ada"}}
    for policy in objects(PODS / "networkpolicies.yaml")[:1]:
        (wanted,) = policy["spec"]["podSelector"]["matchExpressions"]
        assert wanted["key"] in pod["metadata"]["labels"]
        assert options.namespace == policy["metadata"]["namespace"]
