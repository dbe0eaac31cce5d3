"""Every error that a caller can meet, each with its HTTP status and a stable code.

KernelkeepError
├── InvalidRequest 400
│   ├── InvalidKernelId
│   ├── InvalidPath
│   └── InvalidEnvironment
├── Unauthorized 403
├── NotFound 404
│   ├── KernelNotFound
│   └── KernelSpecNotFound
├── KernelNotRunning 409
├── RequestTooLarge 413
├── KernelStartFailed 500
└── ServerStopping 503

They are raised where the fact is known, and turned into a response in one place (`app.api.errors`).
Messages never repeat a value that a client sent, except ids and names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

MAX_NAME: Final = 100  # characters of a name that does not exist are repeated


class KernelkeepError(Exception):
    """The base: ``status`` is an HTTP status, ``code`` never changes once published."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(KernelkeepError):
    """The request cannot be understood."""

    status = 400
    code = "invalid_request"


class InvalidKernelId(InvalidRequest):
    """A kernel id that is not a UUID."""

    code = "invalid_kernel_id"


class InvalidPath(InvalidRequest):
    """A path outside the root directory, or none at all."""

    code = "invalid_path"


class InvalidEnvironment(InvalidRequest):
    """An environment variable that no process can be given."""

    code = "invalid_environment"


class Unauthorized(KernelkeepError):
    """No token, or a wrong one."""

    status = 403
    code = "unauthorized"


class NotFound(KernelkeepError):
    """There is no such thing."""

    status = 404
    code = "not_found"


class KernelNotFound(NotFound):
    """No kernel has this id."""

    code = "kernel_not_found"

    def __init__(self, kernel_id: str) -> None:
        super().__init__(f"Kernel does not exist: {kernel_id}")


class KernelSpecNotFound(NotFound):
    """No kernelspec has this name."""

    code = "kernelspec_not_found"

    def __init__(self, name: str, available: Iterable[str] = ()) -> None:
        names = ", ".join(sorted(available))
        shown = name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"
        super().__init__(
            f"Kernel spec {shown} not found" + (f" (available: {names})" if names else "")
        )


class KernelNotRunning(KernelkeepError):
    """The kernel has no process that could do what was asked."""

    status = 409
    code = "kernel_not_running"


class RequestTooLarge(KernelkeepError):
    """The body of a request has more bytes than are read."""

    status = 413
    code = "request_too_large"


class KernelStartFailed(KernelkeepError):
    """The kernel's process could not be started, or ended before it was ready."""

    code = "kernel_start_failed"


class ServerStopping(KernelkeepError):
    """The server is shutting down and takes no new work."""

    status = 503
    code = "server_stopping"
