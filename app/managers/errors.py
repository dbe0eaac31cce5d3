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
├── PromptGone 409
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
    by_system: ClassVar[bool] = False
    """Whether the operating system has refused: the request may be done in part by then."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after: int | None = None
        self.details: Mapping[str, Any] = {}
        """Further keys of the response's body."""
        self.hides: Mapping[str, str] = {}
        """A thing that exists although the response says that it does not, as the fields of the
        audit log name it. Only the audit log has them."""
        self.noted = False
        """Whether the audit log has noted this error as a failure, so that it is no refusal."""

    def hiding(self, hidden: Mapping[str, str]) -> Self:
        """Set `hides` to ``hidden``, which may be empty; returns this error."""
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
    """The kernel id is not a UUID."""

    code = "invalid_kernel_id"


class InvalidPath(InvalidRequest):
    """The path leads outside the root directory, or is no path."""

    code = "invalid_path"


class InvalidEnvironment(InvalidRequest):
    """No process can be given this environment variable."""

    code = "invalid_environment"


class MissingField(InvalidRequest):
    """The body lacks a field that it must have."""

    code = "missing_field"

    def __init__(self, field: str) -> None:
        super().__init__(f"Missing field in JSON data: {field}")


class FieldNotUpdatable(InvalidRequest):
    """The field does not exist, or cannot be changed."""

    code = "field_not_updatable"

    def __init__(self, field: str) -> None:
        super().__init__(f"Field {field[:MAX_NAME]} is not updatable")


class NoSuchKernel(InvalidRequest):
    """The body of a request names a kernel that there is not."""

    code = "no_such_kernel"

    def __init__(self, kernel_id: str) -> None:
        super().__init__(f"No such kernel: {kernel_id[:MAX_NAME]}")


class InvalidEvent(InvalidRequest):
    """The event has no schema here, or breaks the rules of its schema."""

    code = "invalid_event"


class WaitTooLong(InvalidRequest):
    """The request asks to wait for longer than any request may."""

    code = "wait_too_long"


class InvalidIdempotencyKey(InvalidRequest):
    """The `Idempotency-Key` is empty, too long, or not printable."""

    code = "invalid_idempotency_key"


class TimeoutTooLong(InvalidRequest):
    """An execution may not run as long as ``timeout`` says."""

    code = "timeout_too_long"


class AfterBeyondEnd(InvalidRequest):
    """No message of the log has this number yet."""

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
    """This client may not give a kernel this environment variable."""

    status = 403
    code = "environment_not_allowed"


class EventSchemaReserved(KernelkeepError):
    """Only the server emits events of this schema."""

    status = 403
    code = "event_schema_reserved"


class TooManySessions(KernelkeepError):
    """The kernel has as many sessions as one may have."""

    status = 429
    code = "too_many_sessions"

    def __init__(self, limit: int) -> None:
        super().__init__(f"This kernel has {limit} sessions, as many as it may; end one first")


class MessageTypeNotAllowed(KernelkeepError):
    """The type of the message that would be sent is not in ``allowed_message_types``."""

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
    """No session has this id, or it is gone with its kernel."""

    code = "session_not_found"

    def __init__(self, what: str) -> None:
        super().__init__(f"Session not found: {what}")


class ExecutionNotFound(NotFound):
    """The kernel has no execution with this id, or it was so long ago that it is forgotten."""

    code = "execution_not_found"

    def __init__(self, execution_id: str) -> None:
        super().__init__(f"Execution does not exist: {execution_id[:MAX_NAME]}")


class OutputNotFound(NotFound):
    """The execution has no such output, has it no more, or not in this media type."""

    code = "output_not_found"


class ShareNotFound(NotFound):
    """The kernel is not shared with this owner or group."""

    code = "share_not_found"

    def __init__(self) -> None:
        super().__init__("The kernel is not shared with this owner or group")


class InvalidShare(InvalidRequest):
    """A kernel cannot be shared with this name or group."""

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
        self.why = why


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
    """It cannot be told whose the token is: the service that knows does not answer."""

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
    """The kernel's process cannot be reached, or does not answer; it may run on."""

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
    """The numbers are of another log: of another kernel, or of an earlier run of the server."""

    status = 409
    code = "stale_epoch"


class GenerationMismatch(KernelkeepError):
    """The kernel's process is not, or not any more, the one that `If-Generation` asks for."""

    status = 412
    code = "generation_mismatch"

    def __init__(self, generation: int) -> None:
        super().__init__(f"The kernel has another process: its generation is {generation}")
