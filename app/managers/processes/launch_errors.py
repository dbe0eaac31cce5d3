"""The errors of launches that fail, by what has made them fail."""

from __future__ import annotations

import errno

from ..errors import KeeperUnavailable, KernelStartFailed

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["TooManyOpenFiles", "described", "launch_failed", "start_failed"]


class TooManyOpenFiles(KernelStartFailed):
    """The server or its keeper has as many files open as it may; the kernels that run go on."""

    status = 503
    code = "too_many_open_files"

    def __init__(self, text: str) -> None:
        if resource is not None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            text += f". The server and its keeper may each have {limit} open (RLIMIT_NOFILE)"
        super().__init__(text)


def launch_failed(error: Exception, more: str = "") -> KernelStartFailed:
    """The error to answer a start with whose launch has raised ``error``."""
    return start_failed(f"The kernel could not be launched: {described(error)}{more}", error)


def start_failed(text: str, error: Exception) -> KernelStartFailed:
    """The error with this text to answer a start with, of which ``error`` is the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) == errno.EMFILE:  # of an `OSError`, or of ZMQ's
            return TooManyOpenFiles(text)
        cause = cause.__cause__
    return KernelStartFailed(text, cause=error)


def described(error: Exception) -> str:
    """The text of an error that a provisioner or the keeper has raised, for people."""
    if isinstance(error, OSError | KeeperUnavailable) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
