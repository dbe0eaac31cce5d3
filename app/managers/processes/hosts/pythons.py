"""The check whether the Python of a host, or of a job, can run a keeper; it runs there.

This server sends the text of this file ahead of the program that runs there, `bootstrap` or a job's
(`bundle.program`), so it imports nothing but the standard library.
"""

import sys

MARK = "kernelkeep: "
"""The beginning of each line of output that is an answer to the server."""

OLDEST = (3, 9)


class Failed(Exception):
    """The keeper cannot run: ``code`` is for the server, and the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def check_python() -> None:
    """Raise `Failed` if this interpreter cannot run a keeper."""
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:3]))
        raise Failed(
            "host_without_python", f"{sys.executable} is Python {version}; it takes 3.9 or newer"
        )
    missing = []
    for module, package in (("zmq", "pyzmq"), ("msgspec", "msgspec")):
        try:
            __import__(module)
        except ImportError:
            missing.append(package)
    if missing:
        names = " ".join(missing)
        raise Failed(
            "host_without_python",
            f"{sys.executable} lacks {names}: {sys.executable} -m pip install {names}",
        )
