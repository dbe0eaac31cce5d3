"""The pod of a kernel, made from the operator's template and the kernelspec's options.

A template is filled as an object, and not as text: placeholders are replaced in each string of it,
so that no value can become a field. The values of placeholders are made of letters, digits and
hyphens, so that they are safe in a shell command of the template, too.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from .docker_words import GENERATION, KEEPER, KERNEL, OWNER, SERVICE
from .kubernetes_options import Claim, KubernetesOptions
from .quantities import InvalidQuantity, least

__all__ = [
    "InvalidTemplate",
    "Named",
    "Share",
    "name_of",
    "owned_by",
    "pod_of",
    "read_template",
    "secret_of",
    "slug",
    "waits_for",
]

TEMPLATE_BYTES: Final = 2**18

MOUNTED: Final = "/run/kernelkeep"
FILE: Final = "order"

PROGRAM: Final = (
    "import os, sys; "
    "os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0); "
    "read = sys.stdin.buffer; "
    "exec(compile(read.read(int(read.readline() or 0)), 'kernelkeep', 'exec'), "
    "{'__name__': '__main__'})"
)
"""The program of the container: it opens the mounted file as its stdin, and then runs the program
that comes there, as jobs of other engines do."""

JOIN_VOLUME: Final = "kernelkeep-join"
TMP_VOLUME: Final = "kernelkeep-tmp"

PATIENCE: Final = "org.kernelkeep.pending-timeout"
LONGEST_WAIT: Final = 7 * 86400.0

ANYBODY: Final = 1000
"""The user and the group of processes, unless the template or an option says another."""

_PLACEHOLDER: Final = re.compile(r"(\$?)\$\{([^}]*)\}")
_PULL: Final = {"missing": "IfNotPresent", "always": "Always", "never": "Never"}
_SLUG: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.ASCII).fullmatch
_HASHED: Final = re.compile(r".*-x[0-9a-f]{12}").fullmatch


class InvalidTemplate(ValueError):
    """A pod's template cannot be used; the text says why."""


class Named(NamedTuple):
    """The service, keeper and kernel of a pod, its owner, and its generation.

    ``owner`` is empty for a warm kernel, which has no owner yet.
    """

    service: str
    keeper_id: str
    kernel_id: str
    owner: str
    generation: int

    @property
    def name(self) -> str:
        """The name of the pod and of its secret; the same for each try to create them."""
        return name_of(self.keeper_id, self.generation)

    @property
    def labels(self) -> dict[str, str]:
        """The labels by which a pod is found again."""
        return {
            SERVICE: self.service,
            KEEPER: self.keeper_id,
            KERNEL: slug(self.kernel_id),
            GENERATION: str(self.generation),
            **({OWNER: slug(self.owner)} if self.owner else {}),
        }

    def values(self, image: str) -> dict[str, str]:
        """The values of a template's placeholders, by their names."""
        return {
            "kernel_id": slug(self.kernel_id),
            **({"owner": slug(self.owner)} if self.owner else {}),
            "generation": str(self.generation),
            "name": self.name,
            "image": image,
        }


class Share(NamedTuple):
    """The owner's limits, which no pod may exceed: bytes, and processors. None for no limit."""

    memory: int | None = None
    cpu: float | None = None


def name_of(keeper_id: str, generation: int) -> str:
    """The name of a pod, and of its secret."""
    return f"kernelkeep-{slug(keeper_id.replace('.', '-'), 100)}-{generation}"


def slug(text: str, length: int = 50) -> str:
    """A text as a label of the domain name system: itself if it is one, or else with a digest.

    Different texts get different labels. So a text that already ends like a digest gets another.
    """
    if len(text) <= length and _SLUG(text) and not _HASHED(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    head = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[: length - 14].strip("-")
    return f"{head}-x{digest}".lstrip("-")


def read_template(path: str) -> dict[str, Any]:
    """The manifest in a file, or an empty one for no file. Raises `InvalidTemplate`."""
    if not path:
        return {}
    try:
        data = Path(path).expanduser().read_bytes()
        if len(data) > TEMPLATE_BYTES:
            raise InvalidTemplate(f"the template {path} is longer than {TEMPLATE_BYTES} bytes")
        found = yaml.safe_load(data)  # JSON is YAML, too
    except (OSError, RuntimeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidTemplate(f"the template {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("kind", "Pod") != "Pod":
        raise InvalidTemplate(f"the template {path} is no manifest of a pod")
    return found


def filled(node: Any, values: Mapping[str, str]) -> Any:
    """A copy of a part of a template with its placeholders replaced. Raises `InvalidTemplate`.

    ``${name}`` stands for a value; ``$${`` stands for ``${``.
    """
    if isinstance(node, dict):
        return {str(name): filled(value, values) for name, value in node.items()}
    if isinstance(node, list):
        return [filled(each, values) for each in node]
    if not isinstance(node, str):
        return node

    def replaced(found: re.Match[str]) -> str:
        if found[1]:
            return found[0][1:]
        try:
            return values[found[2]]
        except KeyError:
            if found[2] == "owner":
                text = "the placeholder ${owner} has no value as long as a pod is nobody's"
                raise InvalidTemplate(text) from None
            known = ", ".join(values)
            text = f"the placeholder ${{{found[2][:40]}}} is none of {known}"
            raise InvalidTemplate(text) from None

    return _PLACEHOLDER.sub(replaced, node)


def pod_of(
    template: Mapping[str, Any], options: KubernetesOptions, named: Named, share: Share
) -> dict[str, Any]:
    """The pod to create. Raises `InvalidTemplate` if the template has not the form of a pod's."""
    values = named.values(options.image)
    pod: dict[str, Any] = filled(template, values)
    try:
        _head(pod, options, named)
        spec = pod["spec"]
        container = _container(spec, options.container)
        _process(container, options)
        _files(spec, container, options, values)
        _resources(container, options, share)
        _placement(spec, options)
        _security(spec, options)
    except (TypeError, AttributeError, KeyError) as error:
        raise InvalidTemplate(f"the template is no manifest of a pod: {error}") from error
    except InvalidQuantity as error:
        raise InvalidTemplate(str(error)) from error
    return pod


def _head(pod: dict[str, Any], options: KubernetesOptions, named: Named) -> None:
    pod |= {"apiVersion": "v1", "kind": "Pod"}
    metadata = pod.setdefault("metadata", {})
    labels = {**(metadata.get("labels") or {}), **named.labels}
    own = {PATIENCE: f"{options.pending_timeout:g}"}
    own |= {OWNER: named.owner} if named.owner else {}
    annotations = {**(metadata.get("annotations") or {}), **own}
    metadata |= {"name": named.name, "namespace": options.namespace}
    metadata |= {"labels": labels, "annotations": annotations}
    metadata.pop("generateName", None)
    spec = pod.setdefault("spec", {})
    spec["restartPolicy"] = "Never"  # what follows its end, this service says
    # Otherwise code in the kernel could speak to the API server as the pod's service account.
    spec.setdefault("automountServiceAccountToken", False)
    spec.setdefault("enableServiceLinks", False)
    spec.setdefault("terminationGracePeriodSeconds", options.grace)


def _container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """The kernel's container: that of this name, or else the first."""
    containers = spec.setdefault("containers", [])
    if not containers:
        containers.append({"name": name or "kernel"})
    found: dict[str, Any]
    for found in containers:
        if not name or found["name"] == name:
            spec["containers"] = [found, *(each for each in containers if each is not found)]
            return found
    raise InvalidTemplate(f"the template has no container {name!a}")


def _process(container: dict[str, Any], options: KubernetesOptions) -> None:
    container["image"] = options.image
    # The command and arguments of the template or the image are replaced: they would run in place
    # of the keeper, or become arguments of `PROGRAM`.
    container["command"] = [_literal(options.python), "-c", PROGRAM, f"{MOUNTED}/{FILE}"]
    container.pop("args", None)
    # The last of its output comes with the status of its end, so that no log has to be read.
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    if options.pull is not None:
        container["imagePullPolicy"] = _PULL[options.pull]
    given = [each for each in container.get("env") or [] if each["name"] not in options.env]
    own = [{"name": name, "value": _literal(value)} for name, value in options.env.items()]
    container["env"] = [*given, *own]


def _literal(value: str) -> str:
    """A variable's value in which Kubernetes sees no ``$(NAME)`` of its own."""
    return value.replace("$(", "$$(")


def _files(
    spec: dict[str, Any],
    container: dict[str, Any],
    options: KubernetesOptions,
    values: Mapping[str, str],
) -> None:
    volumes = spec["volumes"] = [*(spec.get("volumes") or [])]
    mounts = container["volumeMounts"] = [*(container.get("volumeMounts") or [])]
    secret = {"secretName": values["name"], "defaultMode": 0o400}
    volumes.append({"name": JOIN_VOLUME, "secret": secret})
    mounts.append({"name": JOIN_VOLUME, "mountPath": MOUNTED, "readOnly": True})
    claim: Claim
    for number, claim in enumerate(options.volumes):
        name = f"kernelkeep-claim-{number}"
        claimed = {"claimName": filled(claim.claim, values), "readOnly": claim.read_only}
        volumes.append({"name": name, "persistentVolumeClaim": claimed})
        mounts.append({"name": name, "mountPath": claim.target, "readOnly": claim.read_only})
    if not any(each["mountPath"].rstrip("/") == "/tmp" for each in mounts):
        volumes.append({"name": TMP_VOLUME, "emptyDir": {}})
        mounts.append({"name": TMP_VOLUME, "mountPath": "/tmp"})
        # The container's root cannot be written, and kernels need a home that can be.
        if not any(each["name"] == "HOME" for each in container["env"]):
            container["env"].append({"name": "HOME", "value": "/tmp"})


def _resources(container: dict[str, Any], options: KubernetesOptions, share: Share) -> None:
    resources = container.setdefault("resources", {})
    limits = {**(resources.get("limits") or {}), **options.limits}
    requests = {**(resources.get("requests") or {}), **options.requests}
    if options.gpus is not None:
        limits[options.gpu_resource] = options.gpus
    # No pod gets a limit above its owner's. A request above a limit is refused by Kubernetes.
    for name, most in (("memory", share.memory), ("cpu", share.cpu)):
        if most is not None:
            limits[name] = least(limits.get(name), _written(most))
        if name in limits and name in requests:
            requests[name] = least(requests[name], limits[name])
    resources |= {"limits": {name: str(value) for name, value in limits.items()}}
    resources |= {"requests": {name: str(value) for name, value in requests.items()}}


def _written(number: float) -> str:
    """An owner's limit as a quantity: in thousandths (``m``), if it is no whole number."""
    return str(number) if number == int(number) else f"{max(1, int(number * 1000))}m"


def _placement(spec: dict[str, Any], options: KubernetesOptions) -> None:
    if options.node_selector:
        spec["nodeSelector"] = {**(spec.get("nodeSelector") or {}), **options.node_selector}
    if options.tolerations:
        spec["tolerations"] = [*(spec.get("tolerations") or []), *options.tolerations]
    if options.priority_class is not None:
        spec["priorityClassName"] = options.priority_class
    if options.service_account is not None:
        spec["serviceAccountName"] = options.service_account
    if options.pull_secrets:
        secrets = [{"name": name} for name in options.pull_secrets]
        spec["imagePullSecrets"] = [*(spec.get("imagePullSecrets") or []), *secrets]


def _security(spec: dict[str, Any], options: KubernetesOptions) -> None:
    """Set safe defaults for what the template does not say, in all containers."""
    # The profile "restricted" of the Pod Security Standards asks for all of this except the
    # read-only root: so a namespace that enforces the profile takes these pods.
    context = spec.setdefault("securityContext", {})
    if options.user is not None:
        context["runAsUser"] = options.user
    if options.group is not None:
        context |= {"runAsGroup": options.group, "fsGroup": options.group}
    context.setdefault("runAsNonRoot", True)
    context.setdefault("runAsUser", ANYBODY)
    context.setdefault("runAsGroup", context["runAsUser"] or ANYBODY)
    # The file of a secret belongs to root: the container's user reads it by this group.
    context.setdefault("fsGroup", context["runAsGroup"])
    context.setdefault("fsGroupChangePolicy", "OnRootMismatch")
    context.setdefault("seccompProfile", {"type": "RuntimeDefault"})
    kernels = spec["containers"][0]
    for container in (*spec["containers"], *(spec.get("initContainers") or [])):
        own = container.setdefault("securityContext", {})
        own.setdefault("allowPrivilegeEscalation", False)
        own.setdefault("capabilities", {"drop": ["ALL"]})
        if container is kernels:
            own.setdefault("readOnlyRootFilesystem", True)


def secret_of(named: Named, namespace: str, uid: str, data: bytes) -> dict[str, Any]:
    """The secret that a pod waits for. It is deleted with its owner, the pod with this ``uid``."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": named.name, "uid": uid}
    metadata = {
        "name": named.name,
        "namespace": namespace,
        "labels": named.labels,
        "ownerReferences": [owner],
    }
    encoded = base64.b64encode(data).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "immutable": True,
        "data": {FILE: encoded},
    }


def owned_by(owner: str) -> dict[str, Any]:
    """The patch of a pod that gets an owner: its label and its annotation."""
    return {"metadata": {"labels": {OWNER: slug(owner)}, "annotations": {OWNER: owner}}}


def waits_for(pod: Mapping[str, Any]) -> tuple[str, float]:
    """A pod's name, and for how many seconds it may wait; both are in its manifest."""
    metadata = pod.get("metadata") or {}
    try:
        seconds = float((metadata.get("annotations") or {})[PATIENCE])
    except (KeyError, ValueError):
        seconds = LONGEST_WAIT
    return str(metadata.get("name")), seconds
