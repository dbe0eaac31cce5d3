"""nbconvert with jupyter_server's gateway client, with a kernel that takes seconds to start."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.clients import (
    check_executed,
    client_environment,
    gateway_command,
    prepare,
    run,
    slow_spec,
)
from tests.support.kernelspecs import write_kernelspec
from tests.support.server import ServerProcess


def test_nbconvert_executes_a_notebook(server: ServerProcess, tmp_path: Path) -> None:
    write_kernelspec(server.home.jupyter_path, "python3", slow_spec())
    prepare(tmp_path)
    environment = client_environment(server, Path(sys.executable).parent)
    run(tmp_path, "sh", "-ec", gateway_command("jupyter nbconvert"), env=environment)
    check_executed(tmp_path)
