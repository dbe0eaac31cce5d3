"""Every error that a client can get, each with its HTTP status and a stable code.

KernelkeepError
├── InvalidRequest 400
│   ├── InvalidJSON
│   ├── InvalidKernelId
│   ├── InvalidPath
│   ├── InvalidEnvironment
│   ├── InvalidEvent
│   ├── InvalidIdempotencyKey
│   ├── WaitTooLong
│   ├── TimeoutTooLong
│   ├── AfterBeyondEnd
│   ├── MissingField
│   ├── FieldNotUpdatable
│   ├── InvalidShare
│   └── NoSuchKernel
├── Unauthorized 403
├── NotAuthorized 403
│   └── ScopeMissing
├── EnvironmentNotAllowed 403
├── EventSchemaReserved 403
├── MessageTypeNotAllowed 403
├── NotFound 404
│   ├── KernelNotFound
│   ├── KernelSpecNotFound
│   ├── ExecutionNotFound
│   ├── OutputNotFound
│   ├── ShareNotFound
│   └── SessionNotFound
├── KernelNotRunning 409
├── NoInputRequested 409
├── IdempotencyConflict 409
├── StaleEpoch 409
├── GenerationMismatch 412
├── RequestTooLarge 413
├── TooManyExecutions 429
├── TooManyKernels 429
├── TooManySessions 429
├── TooManyShares 429
├── TooManyStarts 429
├── KernelStartFailed 500
│   ├── IsolationUnavailable
│   └── KernelSpecInvalid
├── KeeperUnavailable 500
├── AuthorizerFailed 500
├── KernelUnavailable 501
├── IdentityUnavailable 503
├── KernelNotStopped 503
├── KernelUnreachable 503
└── ServerStopping 503

Those of files and directories are in `app.managers.files.errors`, those of the list of tokens in
`app.managers.owners.errors`, those of limits in `app.managers.limits.errors`, that of engines'
options in `app.managers.processes.engines.caller_options`.

An error is raised where its cause is known, and one handler turns it into a response
(`app.api.errors`). Messages never repeat a value that a client sent, except ids and names. The
first paragraph of each class's docstring is its description in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Self

RETRY_IDENTITY: Final = 5  # in seconds, after which another service may answer again
RETRY_STOPPED: Final = 5  # in seconds, after which the next server may have taken over
MAX_NAME: Final = 100  # how many characters of a name that a client sent are repeated


class KernelkeepError(Exception):
    """The base class: ``status`` is an HTTP status, ``code`` never changes once published."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after: int | None = None
        self.details: Mapping[str, Any] = {}
        """Further keys of the response's body."""
        self.hides: Mapping[str, str] = {}
        """What is there although the response says that it is not, in the fields of the audit log.
        Only the audit log tells it."""

    def hiding(self, hidden: Mapping[str, str]) -> Self:
        """This error, which `hides` something; or nothing, if ``hidden`` is empty."""
        self.hides = hidden
        return self


class InvalidRequest(KernelkeepError):
    """The request cannot be understood."""

    status = 400
    code = "invalid_request"


class InvalidJSON(InvalidRequest):
    """The body is not JSON."""

    code = "invalid_json"


class InvalidKernelId(InvalidRequest):
    """A kernel id that is not a UUID."""

    code = "invalid_kernel_id"


class InvalidPath(InvalidRequest):
    """A path outside the root directory, or none at all."""

    code = "invalid_path"


class InvalidEnvironment(InvalidRequest):
    """An environment variable that no process can be given."""

    code = "invalid_environment"


class MissingField(InvalidRequest):
    """A body without a field that it must have."""

    code = "missing_field"

    def __init__(self, field: str) -> None:
        super().__init__(f"Missing field in JSON data: {field}")


class FieldNotUpdatable(InvalidRequest):
    """A field that exists, or not, and cannot be changed."""

    code = "field_not_updatable"

    def __init__(self, field: str) -> None:
        super().__init__(f"Field {field[:MAX_NAME]} is not updatable")


class NoSuchKernel(InvalidRequest):
    """The body of a request names a kernel that there is not."""

    code = "no_such_kernel"

    def __init__(self, kernel_id: str) -> None:
        super().__init__(f"No such kernel: {kernel_id[:MAX_NAME]}")


class InvalidEvent(InvalidRequest):
    """An event that no schema knows, or that is not as its schema says."""

    code = "invalid_event"


class WaitTooLong(InvalidRequest):
    """A request that would wait for longer than any may."""

    code = "wait_too_long"


class InvalidIdempotencyKey(InvalidRequest):
    """An `Idempotency-Key` that is empty, too long, or not printable."""

    code = "invalid_idempotency_key"


class TimeoutTooLong(InvalidRequest):
    """An execution may not run as long as ``timeout`` says."""

    code = "timeout_too_long"


class AfterBeyondEnd(InvalidRequest):
    """A number that no message of the log has yet."""

    code = "after_beyond_end"


class Unauthorized(KernelkeepError):
    """No token, or a wrong one."""

    status = 403
    code = "unauthorized"


class NotAuthorized(KernelkeepError):
    """The authorizer says no."""

    status = 403
    code = "not_authorized"

    def __init__(self, action: str, resource: str) -> None:
        super().__init__(f"User is not authorized to {action} on resource: {resource}.")


class ScopeMissing(NotAuthorized):
    """The credential has no scope for this."""

    def __init__(self, action: str, resource: str) -> None:
        super().__init__(action, resource)
        self.message += f" This takes the scope {resource}:{action}."


class EnvironmentNotAllowed(KernelkeepError):
    """An environment variable that this client may not give a kernel."""

    status = 403
    code = "environment_not_allowed"


class EventSchemaReserved(KernelkeepError):
    """The events of this schema are the server's own to tell."""

    status = 403
    code = "event_schema_reserved"


class TooManySessions(KernelkeepError):
    """The kernel has as many sessions as one may have."""

    status = 429
    code = "too_many_sessions"

    def __init__(self, limit: int) -> None:
        super().__init__(f"This kernel has {limit} sessions, as many as it may; end one first")


class MessageTypeNotAllowed(KernelkeepError):
    """The message that would have to be sent is not in ``allowed_message_types``."""

    status = 403
    code = "message_type_not_allowed"


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


class SessionNotFound(NotFound):
    """No session has this id, or its kernel is gone and so it is itself."""

    code = "session_not_found"

    def __init__(self, what: str) -> None:
        super().__init__(f"Session not found: {what}")


class ExecutionNotFound(NotFound):
    """The kernel has no execution with this id, or has had it too long ago."""

    code = "execution_not_found"

    def __init__(self, execution_id: str) -> None:
        super().__init__(f"Execution does not exist: {execution_id[:MAX_NAME]}")


class OutputNotFound(NotFound):
    """The execution has no such output, or no longer, or not in this media type."""

    code = "output_not_found"


class ShareNotFound(NotFound):
    """The kernel is not shared with this owner or group."""

    code = "share_not_found"

    def __init__(self) -> None:
        super().__init__("The kernel is not shared with this owner or group")


class InvalidShare(InvalidRequest):
    """A kernel cannot be shared with this."""

    code = "invalid_share"


class TooManyShares(KernelkeepError):
    """The kernel has as many shares as one may have."""

    status = 429
    code = "too_many_shares"

    def __init__(self, limit: int) -> None:
        super().__init__(f"This kernel has {limit} shares, as many as it may; end one first")


class NoInputRequested(KernelkeepError):
    """The execution has not asked its user for anything."""

    status = 409
    code = "no_input_requested"


class PromptGone(KernelkeepError):
    """The prompt that an answer names is not what the execution asks its user for now."""

    status = 409
    code = "prompt_gone"


class IdempotencyConflict(KernelkeepError):
    """The `Idempotency-Key` has been used for another request."""

    status = 409
    code = "idempotency_conflict"


class TooManyExecutions(KernelkeepError):
    """No more executions can wait; ``retry_after`` tells in how many seconds to try again."""

    status = 429
    code = "too_many_executions"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyKernels(KernelkeepError):
    """There are ``max_kernels``, or will be when those that are asked for have started."""

    status = 429
    code = "too_many_kernels"

    def __init__(self, limit: int) -> None:
        super().__init__(f"There are {limit} kernels, as many as there may be; shut one down first")


class TooManyStarts(KernelkeepError):
    """No more starts can wait; ``retry_after`` tells in how many seconds to try again."""

    status = 429
    code = "too_many_starts"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KernelNotRunning(KernelkeepError):
    """The kernel has no process that could do what was asked."""

    status = 409
    code = "kernel_not_running"


class RequestTooLarge(KernelkeepError):
    """The body of a request has more bytes than are read."""

    status = 413
    code = "request_too_large"


class KernelStartFailed(KernelkeepError):
    """The kernel's process could not be started, or ended before it was ready.

    With a ``cause`` that has a code of its own, the response has that as well.
    """

    code = "kernel_start_failed"

    def __init__(self, message: str, cause: Exception | None = None) -> None:
        super().__init__(message)
        if isinstance(cause, KernelkeepError):
            self.details = {"cause": cause.code}


class IsolationUnavailable(KernelStartFailed):
    """The kernel cannot be kept apart from those of other owners, as the service's options ask."""

    code = "isolation_unavailable"

    def __init__(self, why: str) -> None:
        super().__init__(f"The kernel cannot be isolated: {why}")


class KernelSpecInvalid(KernelStartFailed):
    """The kernelspec is there, but broken: the message names its file and the key that is wrong."""

    code = "kernelspec_invalid"

    def __init__(self, name: str, path: str, fault: str) -> None:
        name, file = (text if text.isprintable() else ascii(text) for text in (name, path))
        super().__init__(f"Kernel spec {name[:MAX_NAME]} is broken: {file}: {fault}")
        self.path, self.fault = path, fault
        self.details = {"short_message": f"Kernel spec {name[:MAX_NAME]} is broken"}


class KeeperUnavailable(KernelkeepError):
    """There is no keeper of kernels, and none can be started."""

    code = "keeper_unavailable"


class IdentityUnavailable(KernelkeepError):
    """Whose the token is cannot be told: the service that knows does not answer."""

    status = 503
    code = "identity_unavailable"

    def __init__(self, retry_after: int = RETRY_IDENTITY) -> None:
        super().__init__("The token cannot be checked now")
        self.retry_after = retry_after


class KernelNotStopped(KernelkeepError):
    """The kernel's process could not be ended. The kernel is as before; try again."""

    status = 503
    code = "kernel_not_stopped"


class KernelUnreachable(KernelkeepError):
    """What would reach the kernel's process fails, or does not answer; the process may run on."""

    status = 503
    code = "kernel_unreachable"


class AuthorizerFailed(KernelkeepError):
    """The authorizer raised or took too long, so the answer is no."""

    code = "authorizer_failed"


class KernelUnavailable(KernelkeepError):
    """A session cannot have the kernel that it asks for. JupyterLab shows the message."""

    status = 501
    code = "kernel_unavailable"

    def __init__(self, message: str, short_message: str) -> None:
        super().__init__(message)
        self.details = {"short_message": short_message}


class ServerStopping(KernelkeepError):
    """The server is shutting down and takes no new work; the next one may."""

    status = 503
    code = "server_stopping"

    def __init__(self) -> None:
        super().__init__("The server is shutting down")
        self.retry_after = RETRY_STOPPED


class StaleEpoch(KernelkeepError):
    """Numbers of another log: of another kernel, or of another run of the server."""

    status = 409
    code = "stale_epoch"


class GenerationMismatch(KernelkeepError):
    """The kernel's process is not, or not any more, the one that `If-Generation` asks for."""

    status = 412
    code = "generation_mismatch"

    def __init__(self, generation: int) -> None:
        super().__init__(f"The kernel has another process: its generation is {generation}")
