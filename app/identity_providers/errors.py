"""The errors of logins. What the identity providers raise is in `app.managers.errors`."""

from __future__ import annotations

from ..managers.errors import KernelkeepError

__all__ = ["LoginNotBegun", "LoginRefused"]


class LoginRefused(KernelkeepError):
    """The person is not let in, by the service of the login or by this server."""

    status = 403
    code = "login_refused"


class LoginNotBegun(KernelkeepError):
    """No login of this server has begun in this browser, or it has ended meanwhile."""

    status = 403
    code = "login_not_begun"

    def __init__(self) -> None:
        super().__init__("No login has begun in this browser, or it has ended: begin again")
