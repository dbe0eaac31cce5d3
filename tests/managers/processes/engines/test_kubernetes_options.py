"""The options of kernels in pods."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jupyter_client.kernelspec import KernelSpec

from app.managers.errors import KernelStartFailed
from app.managers.processes.engines.kubernetes_options import (
    PROVISIONER,
    Cluster,
    KubernetesOptions,
    kubernetes_options,
    measure,
)


def options(**config: Any) -> KubernetesOptions:
    asked = {"image": "k:1", "namespace": "k", **config}
    stanza = {"provisioner_name": PROVISIONER, "config": asked}
    found = kubernetes_options(KernelSpec(metadata={"kernel_provisioner": stanza}))
    assert found is not None
    return found


def test_the_files_of_the_server_are_where_the_kernelspec_says() -> None:
    assert options().root_there(Path("/srv/work")) == ""
    assert options(root_dir="/data").root_there(Path("/srv/work")) == "/data"


def test_other_kernelspecs_have_none() -> None:
    assert kubernetes_options(KernelSpec()) is None


def test_equal_clusters_are_one_engine() -> None:
    first = options(kubeconfig="/etc/kube", context="lab", limits={"cpu": 2})
    assert first.engine == options(kubeconfig="/etc/kube", context="lab").engine
    assert first.engine != options(kubeconfig="/etc/kube", context="lab", namespace="j").engine
    cluster = msgspec.json.decode(first.engine, type=Cluster)
    assert cluster.name == "Kubernetes (lab, namespace k)"
    assert options().cluster.name == "Kubernetes (namespace k)"
    assert first.patience > first.pending_timeout


@pytest.mark.parametrize(
    "config",
    [
        {"image": "--privileged"},
        {"image": ""},
        {"namespace": "../kube-system"},
        {"namespace": "A"},
        {"namespace": "k\n"},
        {"limits": {"cpu\n": 1}},
        {"env": {"A\n": "x"}},
        {"limits": {"memory": "much"}},
        {"requests": {"cpu": -1}},
        {"limits": {"a b": 1}},
        {"gpus": 0},
        {"grace": 0},
        {"user": 0},
        {"pull": "sometimes"},
        {"env": {"1A": "x"}},
        {"env": {"A": "\x00"}},
        {"volumes": [{"claim": "home", "target": "relative"}]},
        {"template": "relative.yaml"},
        {"address": "nowhere"},
        {"privileged": True},
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(KernelStartFailed, match=PROVISIONER):
        options(**config)


def test_values_of_callers_are_measured_as_quantities() -> None:
    assert measure("limits.memory", "2Gi") == 2 * 2**30
    assert measure("limits.cpu", 0.5) == Decimal("0.5")
    for value in (True, "much", ""):
        with pytest.raises(ValueError, match="no quantity"):
            measure("limits.cpu", value)
