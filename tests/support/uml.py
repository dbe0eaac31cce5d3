"""A Linux of its own for tests of control groups, which nobody has to give to them.

User Mode Linux is a kernel that runs as a program. Its root directory is this machine's. Its
processes, control groups, ``/tmp`` and network are its own: nothing here is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["run_in_uml"]

PROGRAM: Final = "linux.uml"
INIT: Final = Path(__file__).with_name("uml_init.py")


def run_in_uml(
    command: Sequence[str],
    *,
    seconds: float,
    cwd: Path,
    env: Mapping[str, str],
    memory: str = "1200M",
) -> tuple[int, str]:
    """Run a command as root in a machine of its own; its exit code, and what it wrote.

    After so many seconds the machine is switched off. The code is -1 if the machine ended without
    having run the command to its end.
    """
    program = shutil.which(PROGRAM)
    assert program, f"{PROGRAM} is missing: apt-get install user-mode-linux"
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        order = {"command": [*command], "cwd": str(cwd), "env": dict(env), "result": directory}
        (work / "order.json").write_text(json.dumps(order))
        machine = [
            *(program, f"mem={memory}", "rootfstype=hostfs", "rootflags=/", "rw", "quiet"),
            *("con=null", "con0=null,fd:1", f"init={sys.executable}", "--"),
            *("-S", str(INIT), str(work / "order.json")),
        ]
        console = _run(machine, seconds, directory)
        written = work / "output"
        output = written.read_text(errors="replace") if written.exists() else ""
        if not (work / "code").exists():
            return -1, f"{output}\n{console}"
        return int((work / "code").read_text()), output


def _run(machine: Sequence[str], seconds: float, home: str) -> str:
    """Run the machine to its end, or end it; what it says itself."""
    with tempfile.TemporaryFile() as console:
        process = subprocess.Popen(
            machine,
            env={"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": "/dev/shm"},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # The machine's processes are processes of this one, in the group of their first.
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                pass
            process.wait()
        console.seek(0)
        return console.read().decode(errors="replace")[-5000:]


def main() -> int:
    """Run the command line's command here, in a machine of its own."""
    command, seconds = sys.argv[1:], 1200.0
    code, output = run_in_uml(command, seconds=seconds, cwd=Path.cwd(), env=os.environ)
    sys.stdout.write(output)
    return code


if __name__ == "__main__":
    sys.exit(main())
