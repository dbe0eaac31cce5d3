"""The one server of a worker that tests share, if they need no options and do it no harm.

A start and an end of a server cost more than most tests do besides. So what a test may leave is
removed behind it, and what a module may leave, behind the module.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.running import start_shared
from tests.support.server import ServerProcess

__all__ = ["OPTIONS", "SharedServer", "lasting_kernel"]

OPTIONS: Final = (
    *("--default-kernel-name", "fake"),
    *("--shutdown-wait-time", "2"),
)
"""What differs from the defaults: a kernel starts quickly when none is named, and one that does not
end when it is asked to is not waited for so long."""

ANSWER_SECONDS: Final = 20


class SharedServer(ServerProcess):
    """A server that outlives the module; a ``lasting`` kernel outlives a test."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lasting: set[str] = set()

    def clear(self) -> None:
        """Delete the sessions and kernels that a test has left.

        Raises:
            AssertionError: the server does not do so, and another has been started in its place.
        """
        try:
            for kind in ("sessions", "kernels"):
                for left in self._left(kind):
                    self._ask("DELETE", f"/api/{kind}/{left}")
                assert not (still := self._left(kind)), f"there are still {kind}: {still}"
        except (AssertionError, OSError, http.client.HTTPException, ValueError) as error:
            said = self.output()
            self._replace()
            raise AssertionError(f"the shared server was of no use: {error!r}\n{said}") from error

    def restore(self) -> None:
        """Remove the files and kernelspecs that a module has written, and what was put out."""
        self._lines.clear()
        for directory in (self.home.root_dir, self.home.jupyter_path):
            for path in directory.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        write_kernelspecs(self.home.jupyter_path, FAKE_SPECS)

    def _left(self, kind: str) -> list[str]:
        """The ids of the sessions or kernels that are there, without those that may be."""
        found = {model["id"]: model for model in self._ask("GET", f"/api/{kind}")}
        return [
            each for each, model in found.items() if {each, _kernel(model)}.isdisjoint(self.lasting)
        ]

    def _ask(self, method: str, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, headers={"Authorization": f"token {self.token}"})
            response = connection.getresponse()
            content = response.read()
            assert response.status in (200, 204, 404), content
            return json.loads(content or "null")
        finally:
            connection.close()

    def _replace(self) -> None:
        self.kill()
        self.__init__(*self._arguments)  # type: ignore[misc]
        write_kernelspecs(self.home.jupyter_path, FAKE_SPECS)
        self.start()


def _kernel(model: Any) -> str:
    """The id of a session's kernel; empty for the model of a kernel."""
    return str(model.get("kernel", {}).get("id", ""))


@contextmanager
def lasting_kernel(server: ServerProcess, name: str) -> Iterator[str]:
    """A kernel that is idle, for the tests of a module; its id."""
    kernel_id = asyncio.run(start_shared(server, name))
    if isinstance(server, SharedServer):
        server.lasting.add(kernel_id)
    yield kernel_id
    if isinstance(server, SharedServer):
        server.lasting.discard(kernel_id)
        server.clear()
