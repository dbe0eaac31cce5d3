"""The errors of logins. What the identity providers raise is in `app.managers.errors`."""

from __future__ import annotations

from ..managers.errors import KernelkeepError

__all__ = ["LoginNotBegun", "LoginRefused"]


class LoginRefused(KernelkeepError):
    """The service that somebody has logged in with, or this server, does not let them in."""

    status = 403
    code = "login_refused"


class LoginNotBegun(KernelkeepError):
    """No login has begun in this browser, or it has ended meanwhile, or was not this server's."""

    status = 403
    code = "login_not_begun"

    def __init__(self) -> None:
        super().__init__("No login has begun in this browser, or it has ended: begin again")
