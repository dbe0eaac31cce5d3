"""What schemathesis makes up from the OpenAPI document: no answer fails, none is outside of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.kernelspecs import Spec
from tests.support.server import REPOSITORY

TIMEOUT = 600  # seconds

pytestmark = pytest.mark.timeout(TIMEOUT + 60)


def test_no_answer_is_outside_the_document(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(
        *("--default-kernel-name", "fake", "--execution-wait-limit", "1"),
        *("--stream-keepalive", "1"),
        specs={"fake": Spec(), "python3": Spec()},
    )
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "st", "--config-file"),
            *(Path(__file__).parent / "schemathesis.toml", "run", "--no-color"),
            *("--header", f"Authorization: token {server.token}", "--url", server.url),
            REPOSITORY / "docs" / "openapi.json",
        ],
        cwd=tmp_path,  # where it leaves its notes
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in server.output()
