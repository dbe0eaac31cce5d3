"""The pods that are asked for: by the published schemas, safe, and as template and options say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from app.managers.processes.engines.kubernetes_options import Claim, KubernetesOptions
from app.managers.processes.engines.kubernetes_pods import (
    LONGEST_WAIT,
    InvalidTemplate,
    Named,
    Share,
    filled,
    name_of,
    owned_by,
    pod_of,
    read_template,
    secret_of,
    slug,
    waits_for,
)

KERNEL = "3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11"


def named(owner: str = "ada") -> Named:
    return Named("s1", f"{KERNEL}.0011aabb", KERNEL, owner, 7)


def pod(
    template: dict[str, Any] | None = None,
    share: Share | None = None,
    owner: str = "ada",
    **options: Any,
) -> dict[str, Any]:
    """A pod that the API server would take."""
    chosen = KubernetesOptions(image="k:1", namespace="kernels", **options)
    found = pod_of(template or {}, chosen, named(owner), share or Share())
    kubernetes_validate.validate(found, "1.34", strict=True)
    return found


def test_without_a_template_it_is_safe() -> None:
    found = pod()
    spec = found["spec"]
    (container,) = spec["containers"]
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["command"][0] == "python3"
    labels = found["metadata"]["labels"]
    assert labels["org.kernelkeep.kernel"] == KERNEL
    assert labels["org.kernelkeep.keeper"] == f"{KERNEL}.0011aabb"
    assert found["metadata"]["name"] == name_of(f"{KERNEL}.0011aabb", 7)


def test_a_template_says_what_options_do_not() -> None:
    template = {
        "metadata": {"labels": {"team": "x", "org.kernelkeep.owner": "eve"}, "name": "mine"},
        "spec": {
            "restartPolicy": "Always",
            "automountServiceAccountToken": True,
            "securityContext": {"runAsUser": 7},
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "t"}],
            "initContainers": [{"name": "first", "image": "i:1"}],
            "containers": [
                {"name": "side", "image": "s:1"},
                {
                    "name": "kernel",
                    "args": ["--bad"],
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
                    "volumeMounts": [{"name": "scratch", "mountPath": "/tmp/"}],
                    "resources": {"limits": {"memory": "8Gi"}, "requests": {"memory": "8Gi"}},
                    "securityContext": {"readOnlyRootFilesystem": False},
                },
            ],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }
    found = pod(
        template,
        Share(memory=2**31, cpu=1.5),
        container="kernel",
        env={"B": "$(A)"},
        gpus=2,
        requests={"cpu": 2},
        limits={"cpu": 4},
        volumes=[Claim("home-${owner}", "/home", read_only=True)],
        node_selector={"c": "d"},
        tolerations=[{"key": "u", "operator": "Exists"}],
        priority_class="low",
        service_account="kernel",
        pull_secrets=["registry"],
        pull="always",
        group=9,
    )
    spec = found["spec"]
    kernel, side = spec["containers"]
    assert (kernel["name"], side["name"]) == ("kernel", "side")
    assert found["metadata"]["labels"]["team"] == "x"
    assert found["metadata"]["labels"]["org.kernelkeep.owner"] == "ada"
    assert found["metadata"]["name"] != "mine"
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is True
    assert spec["securityContext"]["runAsUser"] == 7
    assert spec["securityContext"]["fsGroup"] == 9
    assert side["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["initContainers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert kernel["securityContext"]["readOnlyRootFilesystem"] is False
    assert "args" not in kernel
    # What Kubernetes would replace is what was written.
    assert kernel["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "$$(A)"}]
    assert kernel["imagePullPolicy"] == "Always"
    assert kernel["resources"] == {
        "limits": {"memory": str(2**31), "cpu": "1500m", "nvidia.com/gpu": "2"},
        "requests": {"memory": str(2**31), "cpu": "1500m"},
    }
    assert spec["nodeSelector"] == {"a": "b", "c": "d"}
    assert len(spec["tolerations"]) == 2
    assert spec["priorityClassName"] == "low"
    assert spec["serviceAccountName"] == "kernel"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    claimed = {"claimName": "home-ada", "readOnly": True}
    assert {"name": "kernelkeep-claim-0", "persistentVolumeClaim": claimed} in spec["volumes"]
    assert [each["mountPath"] for each in kernel["volumeMounts"]].count("/tmp") == 0


def test_an_option_comes_before_the_template() -> None:
    template = {"spec": {"securityContext": {"runAsUser": 7}}}
    assert pod(template, user=8)["spec"]["securityContext"]["runAsGroup"] == 8
    with_home = pod(env={"HOME": "/home"})["spec"]["containers"][0]["env"]
    assert with_home == [{"name": "HOME", "value": "/home"}]


EVIL = '"}],\n"hostNetwork": true, x: ${image} $(id) `id` ; rm -rf / #'


def test_nothing_of_an_owner_becomes_a_field() -> None:
    template = {
        "metadata": {"annotations": {"who": "${owner}", "what": "$${owner} ${name}"}},
        "spec": {"containers": [{"name": "kernel", "env": [{"name": "W", "value": "${owner}"}]}]},
    }
    found = pod(template, owner=EVIL)
    assert "hostNetwork" not in json.dumps(found["spec"])
    who = found["metadata"]["annotations"]["who"]
    assert who == found["metadata"]["labels"]["org.kernelkeep.owner"] == slug(EVIL)
    assert set(who) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert found["metadata"]["annotations"]["what"].startswith("${owner} kernelkeep-")
    assert found["metadata"]["annotations"]["org.kernelkeep.owner"] == EVIL


def test_a_pod_of_nobodys_says_nothing_of_an_owner_until_it_has_one() -> None:
    found = pod({"metadata": {"labels": {"of": "${kernel_id}"}}}, owner="")
    metadata = found["metadata"]
    assert "org.kernelkeep.owner" not in {**metadata["labels"], **metadata["annotations"]}
    with pytest.raises(InvalidTemplate, match="as long as a pod is nobody's"):
        pod({"metadata": {"labels": {"of": "x-${owner}"}}}, owner="")
    with pytest.raises(InvalidTemplate, match="as long as a pod is nobody's"):
        pod(owner="", volumes=[Claim(claim="home-${owner}", target="/home/kernel")])
    changed = owned_by("Ada L.")["metadata"]
    owned = pod(owner="Ada L.")["metadata"]
    for table in ("labels", "annotations"):
        assert {**metadata[table], **changed[table]} == {**owned[table], **metadata[table]}


def test_owners_have_slugs_of_their_own() -> None:
    names = ["ada", "Ada", "ada ", "", "ß", "x" * 80, "x" * 81, "-ada", "ada-", slug("Ada")]
    slugs = [slug(name) for name in names]
    assert len({*slugs}) == len(names)
    assert slugs[0] == "ada"
    assert all(len(each) <= 63 for each in slugs)
    assert slug(KERNEL) == KERNEL


@pytest.mark.parametrize(
    "template",
    [
        {"spec": {"containers": [{"name": "${nobody}"}]}},
        {"spec": {"containers": [{"name": "other"}]}},
        {"spec": {"containers": "kernel"}},
        {"spec": []},
        {"metadata": []},
        {"spec": {"containers": [{"name": "kernel", "env": [{}]}]}},
        {"spec": {"containers": [{"name": "kernel", "resources": {"limits": {"cpu": "x"}}}]}},
    ],
)
def test_what_is_no_template_is_told(template: dict[str, Any]) -> None:
    chosen = KubernetesOptions(image="k:1", namespace="k", container="kernel", env={"A": "1"})
    with pytest.raises(InvalidTemplate):
        pod_of(template, chosen, named(), Share(cpu=1))


def test_a_template_is_a_file(tmp_path: Path) -> None:
    assert read_template("") == {}
    file = tmp_path / "pod.yaml"
    file.write_text("kind: Pod\nspec: {hostname: a}\n")
    assert read_template(str(file))["spec"] == {"hostname": "a"}
    file.write_text('{"spec": {}}')
    assert read_template(str(file)) == {"spec": {}}
    for text in ("- a", "kind: Secret", "a: [", "!!python/object:os.system {}", "# " + "x" * 2**18):
        file.write_text(text)
        with pytest.raises(InvalidTemplate):
            read_template(str(file))
    with pytest.raises(InvalidTemplate):
        read_template(str(tmp_path / "none"))


def test_values_other_than_texts_stay() -> None:
    assert filled({"a": [1, None, True, "${x}"]}, {"x": "y"}) == {"a": [1, None, True, "y"]}


def test_the_secret_is_the_pods() -> None:
    secret = secret_of(named(), "kernels", "some-uid", b"\x00secret")
    kubernetes_validate.validate(secret, "1.34", strict=True)
    (owner,) = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Pod", "some-uid")
    assert secret["metadata"]["name"] == pod()["metadata"]["name"]
    volume = next(each for each in pod()["spec"]["volumes"] if "secret" in each)
    assert volume["secret"] == {"secretName": secret["metadata"]["name"], "defaultMode": 0o400}


def test_how_long_a_pod_may_wait_is_in_it() -> None:
    found = pod(pending_timeout=90.5)
    assert waits_for(found) == (found["metadata"]["name"], 90.5)
    assert waits_for({"metadata": {"name": "x"}}) == ("x", LONGEST_WAIT)
