"""What the framework would tell a tracer: addresses of requests, in which tokens may be."""

from __future__ import annotations

import subprocess
import sys

from tests.support.home import Home
from tests.support.server import REPOSITORY

SCRIPT = """
import asyncio
import httpx
from fastapi import FastAPI
from opentelemetry import trace

class Provider(trace.TracerProvider):
    def get_tracer(self, *arguments, **options):
        print("traced", app.title)
        return trace.NoOpTracer()

trace.set_tracer_provider(Provider())
from app.main import create_app
for app in (FastAPI(title="plain"), create_app()):
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    print(asyncio.run(client.get("/api/kernels?token=secret")).status_code)
"""


def test_no_tracer_learns_of_requests(home: Home) -> None:
    """A plain application of the framework's is traced, so that ours could be."""
    script = [sys.executable, "-c", SCRIPT]
    ended = subprocess.run(
        script, cwd=REPOSITORY, env=home.environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.split("\n") == ["traced plain", "404", "403", ""], ended.stderr
