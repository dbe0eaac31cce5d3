"""deploy/compose.yaml and deploy/kubernetes/: valid by their schemas, and by our options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from compose_spec import PyCompose

from app.settings import Settings
from tests.support.proxies import DEPLOY, PREFIX
from tests.support.server import REPOSITORY

KUBERNETES = "1.34"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


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


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
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
