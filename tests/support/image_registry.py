"""A registry of images, as much of one as it takes to pull one image of a single layer."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "kernels"
"""The one image that there is."""

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


class Registry:
    """Serves an image of this layer, a tar; the layer's bytes only while ``gate`` is set.

    With a ``login`` (``name:password``) whoever has not that gets nothing.
    """

    def __init__(self, host: str, port: int, layer: bytes, login: str = "") -> None:
        self.login = login
        self.gate = threading.Event()
        self.asked = threading.Event()
        """Set when the layer is asked for."""
        self.image = f"{host}:{port}/{NAME}:1"
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            }
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _described(_CONFIG, config),
            "layers": [_described(_LAYER, layer)],
        }
        self.manifest = json.dumps(manifest).encode()
        self.layer = _digest(layer)
        self.blobs = {_digest(blob): blob for blob in (config, layer)}
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _described(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


def _handler(registry: Registry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            what = self.path.removeprefix(f"/v2/{NAME}/")
            shown = base64.b64encode(registry.login.encode()).decode()
            if registry.login and self.headers["Authorization"] != f"Basic {shown}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="kernels"')
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path == "/v2/":
                self._answer(b"{}", "application/json")
            elif what.startswith("manifests/"):
                self._answer(registry.manifest, _MANIFEST)
            elif (blob := registry.blobs.get(what.removeprefix("blobs/"))) is not None:
                if what.endswith(registry.layer):
                    registry.asked.set()
                    registry.gate.wait(60)
                self._answer(blob, "application/octet-stream")
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - what the server looks for

        def _answer(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", _digest(data))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler
