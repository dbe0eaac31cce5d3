"""The errors of files and directories: a part of the tree of `app.managers.errors`."""

from __future__ import annotations

from ..errors import MAX_NAME, InvalidRequest, KernelkeepError, NotFound, RequestTooLarge

__all__ = [
    "ContentsExist",
    "ContentsForbidden",
    "ContentsNotFound",
    "ContentsTooLarge",
    "ContentsUnavailable",
    "InvalidContents",
    "NoSpace",
    "RangeNotSatisfiable",
    "VersionMismatch",
]


class InvalidContents(InvalidRequest):
    """A file or directory cannot be read, written or named like that."""

    code = "invalid_contents"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.details = {"reason": reason}


class ContentsForbidden(KernelkeepError):
    """The operating system does not let the server do that with this file or directory."""

    status = 403
    code = "contents_forbidden"
    by_system = True


class ContentsNotFound(NotFound):
    """There is no such file, directory or checkpoint, or none that is shown."""

    code = "contents_not_found"

    def __init__(self, path: str, what: str = "No such file or directory") -> None:
        missing = f"{what} does not exist: {path}" if what == "Checkpoint" else f"{what}: {path}"
        super().__init__(missing[: 2 * MAX_NAME])


class ContentsExist(KernelkeepError):
    """There is a file or directory of this name already."""

    status = 409
    code = "contents_exist"

    def __init__(self, path: str) -> None:
        super().__init__(f"File already exists: {path[: 2 * MAX_NAME]}")


class VersionMismatch(KernelkeepError):
    """The file is not, or not any more, what `If-Match` or `If-None-Match` takes it for."""

    status = 412
    code = "version_mismatch"


class ContentsTooLarge(RequestTooLarge):
    """The file is larger than what is put into one answer, or the directory than what is copied."""

    code = "contents_too_large"


class RangeNotSatisfiable(KernelkeepError):
    """The file has no such bytes."""

    status = 416
    code = "range_not_satisfiable"


class ContentsUnavailable(KernelkeepError):
    """The file system does not answer in time."""

    status = 503
    code = "contents_unavailable"


class NoSpace(KernelkeepError):
    """The disk or a quota is full."""

    status = 507
    code = "no_space"
