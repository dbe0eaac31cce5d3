"""Kernelspecs for the fake kernel, written into a directory for ``JUPYTER_PATH``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FAKE_KERNEL = Path(__file__).parents[1] / "kernels" / "run_fake.py"

# A valid PNG of one transparent pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360000000000500017a5eab3f0000000049454e44ae426082"
)


@dataclass(frozen=True)
class Spec:
    """A kernelspec; by default one that runs the fake kernel without any misbehaviour.

    ``flags`` are the fake kernel's. ``argv`` replaces the whole command line, ``fields`` adds to
    or overrides what ``kernel.json`` says, and ``resources`` are further files by name.
    """

    flags: tuple[str, ...] = ()
    argv: tuple[str, ...] | None = None
    interrupt_mode: Literal["signal", "message"] = "signal"
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, bytes] = field(default_factory=dict)

    def as_json(self, name: str) -> dict[str, Any]:
        fake = (sys.executable, str(FAKE_KERNEL), "-f", "{connection_file}", *self.flags)
        return {
            "argv": list(self.argv if self.argv is not None else fake),
            "display_name": f"Fake ({name})",
            "language": "fake",
            "interrupt_mode": self.interrupt_mode,
            "env": dict(self.env),
            "metadata": dict(self.metadata),
            **self.fields,
        }


# One spec for each way in which kernels go wrong before they execute anything.
FAKE_SPECS: Mapping[str, Spec] = {
    "fake": Spec(resources={"logo-64x64.png": PIXEL, "logo-svg.svg": b"<svg/>", "kernel.js": b""}),
    "fake-message": Spec(interrupt_mode="message", flags=("--ignore-sigint",)),
    "fake-exit": Spec(flags=("--exit", "7", "--stderr", "the fake kernel cannot start")),
    "fake-missing": Spec(argv=("/nonexistent/kernel", "-f", "{connection_file}")),
    "fake-slow": Spec(flags=("--slow-start", "2")),
    "fake-unbound": Spec(flags=("--never-bind",)),
    "fake-silent": Spec(flags=("--never-answer",)),
    "fake-old": Spec(flags=("--no-welcome", "--no-control-kernel-info")),
    "fake-wrong-key": Spec(flags=("--wrong-key",)),
    "fake-no-ipc": Spec(flags=("--no-ipc", "exit")),
    "fake-no-ipc-hang": Spec(flags=("--no-ipc", "hang")),
    "fake-no-shutdown": Spec(flags=("--ignore-shutdown",)),
    "fake-stubborn": Spec(flags=("--ignore-shutdown", "--ignore-sigterm", "--ignore-sigint")),
    "fake-children": Spec(flags=("--children", "2", "--ignore-sigterm")),
}


def write_kernelspec(jupyter_path: Path, name: str, spec: Spec) -> Path:
    """Writes (or replaces) a spec and returns its directory, ``jupyter_path/kernels/name``."""
    directory = jupyter_path / "kernels" / name
    directory.mkdir(parents=True, exist_ok=True)
    for file_name, data in spec.resources.items():
        (directory / file_name).write_bytes(data)
    (directory / "kernel.json").write_text(json.dumps(spec.as_json(name), indent=1))
    return directory


def write_kernelspecs(jupyter_path: Path, specs: Mapping[str, Spec] = FAKE_SPECS) -> None:
    for name, spec in specs.items():
        write_kernelspec(jupyter_path, name, spec)


def write_broken_kernelspec(jupyter_path: Path, name: str, text: str = "{") -> Path:
    """A spec whose ``kernel.json`` holds ``text``, by default not JSON."""
    directory = jupyter_path / "kernels" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "kernel.json").write_text(text)
    return directory


def shell_spec(script: str, **more: Any) -> Spec:
    """A spec whose kernel is a script for ``/bin/sh``; ``more`` are fields of :class:`Spec`.

    In the script ``$CONNECTION`` is the path of the connection file, and ``$FAKE`` the command
    that becomes the fake kernel: ``exec $FAKE``.
    """
    prologue = f"CONNECTION=$1; FAKE='{sys.executable} {FAKE_KERNEL} -f '$1\n"
    return Spec(argv=("/bin/sh", "-c", prologue + script, "sh", "{connection_file}"), **more)
