"""Sessions: which document or console works with which kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Final
from uuid import uuid4

import msgspec
from msgspec import Meta

from ..errors import (
    InvalidKernelId,
    InvalidRequest,
    KernelkeepError,
    KernelNotFound,
    KernelNotStopped,
    KernelSpecNotFound,
    KernelUnavailable,
    NoSuchKernel,
    NotAuthorized,
    ServerStopping,
    SessionNotFound,
    TooManyKernels,
    TooManySessions,
    TooManyStarts,
)
from ..kernels.callers import CallersKernels
from ..limits.errors import BeyondLimit, LimitReached
from ..owners.ownership import Ownership, access
from ..processes.engines.caller_options import EngineOptionRefused
from ..processes.engines.quantities import Value
from ..processes.environment import kernel_environment
from ..replicas.errors import RegistryUnavailable
from .book import SessionBook, farewell
from .store import Session

__all__ = ["SessionManager", "SessionModel"]

MAX_SESSIONS: Final = 64
"""Sessions that one kernel may have. A client makes one for each document; a listing has all."""


_TOLD_AS_THEY_ARE: Final = (
    *(BeyondLimit, EngineOptionRefused, LimitReached),
    *(RegistryUnavailable, ServerStopping, TooManyKernels, TooManyStarts),
)
"""Errors of a start that a session's client is told as they are; others are `KernelUnavailable`."""


class SessionNotebook(msgspec.Struct):
    """The older form of a session's path and name."""

    path: str
    name: str


class SessionModel(msgspec.Struct):
    """A session: a document or a console, and its kernel."""

    id: Annotated[str, Meta(description="The session's id, a UUID.")]
    path: Annotated[
        str, Meta(description="The path of its document, or what else a client calls it by.")
    ]
    name: Annotated[str, Meta(description="The name it was given; empty if none was.")]
    type: Annotated[str, Meta(description="What it is.", examples=["notebook", "console", "file"])]
    kernel: msgspec.Raw
    """A `KernelModel`, serialised already."""
    notebook: Annotated[
        SessionNotebook | msgspec.UnsetType,
        Meta(
            description="Only of the type `notebook`.",
            extra_json_schema={"deprecated": True},
        ),
    ] = msgspec.UNSET


_encode = msgspec.json.Encoder().encode


class SessionManager:
    """Makes, finds, changes and ends the sessions of one caller, who finds ``kernels``.

    A session belongs to the owner who has made it, and exists while the owner may see its kernel.
    Other callers get the errors for a session that does not exist. Sessions of two owners may have
    the same path.
    """

    def __init__(self, kernels: CallersKernels, book: SessionBook) -> None:
        self._kernels = kernels
        self._book = book
        self._principal = kernels.principal

    # Looking

    async def models(self, owner: str | None = None) -> bytes:
        """The models of all sessions, or of an owner's, as a JSON list.

        Sessions whose kernel is gone are removed.
        """
        await self._book.forget_gone(self._candidates())
        # More kernels may have gone while that was stored; the next listing forgets their sessions.
        there = filter(self._book.has_kernel, self._candidates())
        found = [
            session
            for session in there
            if owner in (None, session.owner) and self._sees("read", session)
        ]
        return b"[" + b",".join([self.model(session) for session in found]) + b"]"

    def _candidates(self) -> list[Session]:
        """The sessions to look at for the caller: if possible, of some owners, and not of all."""
        scopes = self._principal.scopes
        if scopes.of_all("read", "sessions"):
            return self._book.all()
        owners, groups = scopes.restrictions("sessions")
        if groups:  # the groups are those of the sessions' kernels, which are not indexed here
            return self._book.all()
        return self._book.of_owners([self._principal.owner, *(owners - {self._principal.owner})])

    def _sees(self, action: str, session: Session) -> bool:
        """Whether the caller may do ``action`` with a session, and may see its kernel."""
        # A kernel that waits to be adopted is listed for no caller; its sessions stay
        # (`Everywhere`).
        if session.kernel_id not in self._kernels:
            return False
        if self._principal.scopes.everything:
            return True
        its = self._kernels.ownership_of(session.kernel_id)
        owned = Ownership(session.owner, its.groups if its.owner == session.owner else ())
        return access(self._principal, action, "sessions", owned)

    async def get(self, session_id: str) -> Session:
        """The session with this id. Raises `SessionNotFound`, also if its kernel is gone.

        In that case the session is removed, and the text of the error says why; later requests get
        the error for an unknown id. Raises `KernelUnreachable` while its kernel waits to be
        adopted.
        """
        # Nothing is awaited from here to `forget`: no kernel with the session's id is started then.
        session = self._book.get(session_id)
        if session is None or not self._knows(session):
            if session is not None and self._is_own(session):
                self._kernels.check_adopted(session.kernel_id)
            hidden = {} if session is None else self._hidden(session)
            raise SessionNotFound(f"session_id={session_id!r}").hiding(hidden)
        if not self._book.has_kernel(session):
            await self._book.forget(session)
            raise SessionNotFound(repr(farewell(session)))
        return session

    def _knows(self, session: Session) -> bool:
        """Whether the caller may learn that there is, or was, this session."""
        if self._book.has_kernel(session):
            return self._sees("read", session)
        return self._is_own(session)

    def _is_own(self, session: Session) -> bool:
        return self._principal.scopes.everything or session.owner == self._principal.owner

    def _hidden(self, session: Session) -> dict[str, str]:
        """A session that the caller does not find, in the fields of the audit log."""
        if session.owner == self._principal.owner:  # its kernel is not shared with the caller now
            return {}
        about = {"session_id": session.id, "kernel_id": session.kernel_id}
        return about | {"owner": session.owner}

    async def _changed(self, session_id: str) -> Session:
        """The session, which the caller wants to change. Raises `NotAuthorized`, too."""
        session = await self.get(session_id)
        if not self._sees("write", session):
            raise NotAuthorized("write", "sessions")
        return session

    def model(self, session: Session) -> bytes:
        """The session model as JSON. Raises `KernelNotFound`."""
        # The model always has a name: one session without would break JupyterLab's whole list.
        name = session.name or ""
        model = SessionModel(
            session.id,
            session.path,
            name,
            session.type,
            msgspec.Raw(self._kernels.model_of(session.kernel_id)),
        )
        if session.type == "notebook":
            model.notebook = SessionNotebook(session.path, name)
        return _encode(model)

    # Doing

    async def create(
        self,
        path: str,
        session_type: str,
        *,
        name: str | None = None,
        kernel_id: str | None = None,
        kernel_name: str | None = None,
        env: Mapping[str, str] | None = None,
        given: Mapping[str, Value] | None = None,
        made: Callable[[Session], None] | None = None,
    ) -> Session:
        """The session of ``path``: an existing one, or a new one, of which ``made`` is told.

        A new session gets the kernel ``kernel_id``, which is started under that id if it does not
        exist, or without an id a new kernel. ``env`` and ``given`` are for one that is started.
        Raises `KernelUnavailable` for an unknown kernelspec, `TooManySessions`, `KernelUnreachable`
        while the kernel of its session waits to be adopted, and what
        `MultiKernelManager.start_kernel` raises.
        """
        # Two requests may come at once for one path, as when a page opens a notebook twice. The
        # second waits here while the first starts a kernel, and then finds the first one's session.
        owner = self._principal.owner
        async with self._book.turn(f"{owner}\0{path}"):
            self._kernels.check_running()
            # First without the turn among replicas, which costs a statement of the database: most
            # requests find an existing session.
            session = await self._at(path)
            if session is not None:
                return session
            # Another replica may be about to make the session: it is stored when this turn comes.
            async with self._book.turn_of_all(owner, path):
                session = await self._at(path)
                if session is not None:
                    return session
                env = {**(env or {}), **(await self._environment(path, name))}
                self._check_room(kernel_id)
                if kernel_id is None or kernel_id not in self._kernels:
                    kernel_id = await self._start_for(path, env, kernel_name, kernel_id, given)
                # The kernel may have ended since: then the next look removes the session again.
                session = Session(str(uuid4()), path, name, session_type, kernel_id, owner)
                await self._book.keep(session)
                if made is not None:
                    made(session)
                return session

    async def update(
        self,
        session_id: str,
        changes: Mapping[str, str | None],
        *,
        kernel_id: str | None = None,
        kernel_name: str | None = None,
        env: Mapping[str, str] | None = None,
        given: Mapping[str, Value] | None = None,
    ) -> Session:
        """Change a session's ``path``, ``name`` or ``type``, or give it another kernel.

        The other kernel is the one with ``kernel_id``, or else a new one of the kernelspec
        ``kernel_name``, which gets ``env`` and ``given``; the session's old kernel is shut down.
        Raises what `get` raises, `NoSuchKernel` for an unknown ``kernel_id``, `TooManySessions`,
        `KernelUnavailable` if none can be started, `EngineOptionRefused`, `TooManyKernels`,
        `TooManyStarts`, `LimitReached`, `BeyondLimit`, `KernelNotStopped` and `ServerStopping`.
        """
        async with self._book.turn(session_id):
            self._kernels.check_running()
            before = await self._changed(session_id)
            # The turn keeps away other changes of this session at this server. Another replica may
            # change it meanwhile: the change that is stored last counts.
            after = msgspec.structs.replace(before, **changes)
            own = await self._environment(after.path, after.name)
            if kernel_id is not None:
                if kernel_id not in self._kernels:
                    raise NoSuchKernel(kernel_id).hiding(self._kernels.hidden(kernel_id))
                if kernel_id != before.kernel_id:
                    self._check_room(kernel_id)
                after = msgspec.structs.replace(after, kernel_id=kernel_id)
            elif kernel_name is not None:
                own_env = {**(env or {}), **own}
                started = await self._start_another(after.path, own_env, kernel_name, given)
                after = msgspec.structs.replace(after, kernel_id=started)
            if after != before:
                await self._book.keep(after)
                with contextlib.suppress(KernelNotFound, NotAuthorized):
                    path = after.path if after.path != before.path else None
                    await self._kernels.driving.relocate(after.kernel_id, path, own)
            # Only now that the session has its new kernel: a request for the session must not find
            # it without a kernel while the old one ends.
            if after.kernel_id != before.kernel_id:
                try:
                    await self._shut_down(before.kernel_id)
                except KernelNotStopped as error:
                    text = "The session has its new kernel, and the one before goes on"
                    raise KernelNotStopped(f"{text}: {error.message}") from error
            return after

    async def delete(self, session_id: str) -> Session:
        """End a session, which is returned, and shut its kernel down.

        The kernel ends even if other sessions have it, too.

        A kernel that others share with the caller goes on: it is its owner's. Returns when the
        kernel's process is gone. Raises what `get` raises, and `KernelNotStopped` or
        `ReplicaUnreachable`, after which the session still exists.
        """
        async with self._book.turn(session_id):
            session = await self._changed(session_id)
            # The session goes before its kernel ends. A request for its path that comes meanwhile
            # then makes a new session with a new kernel, and does not get the one that is ending.
            await self._book.forget(session)
            try:
                await self._shut_down(session.kernel_id)
            except BaseException:
                # If the kernel goes on (it could not be stopped, its replica is away, or the server
                # ends), so does its session: the client may ask again.
                if self._book.has_kernel(session):
                    await self._book.keep(session)
                raise
            return session

    # Steps of these methods

    def _check_room(self, kernel_id: str | None) -> None:
        """Raise `TooManySessions` if the caller has `MAX_SESSIONS` with the kernel already."""
        own = self._book.of_owners([self._principal.owner])
        if sum(session.kernel_id == kernel_id for session in own) >= MAX_SESSIONS:
            raise TooManySessions(MAX_SESSIONS)

    async def _at(self, path: str) -> Session | None:
        """The caller's own session of a path; one whose kernel is gone is removed.

        Raises `KernelUnreachable` for one whose kernel waits to be adopted.
        """
        for session in self._book.of_owners([self._principal.owner]):
            if session.path != path:
                continue
            if session.kernel_id in self._kernels:
                return session
            self._kernels.check_adopted(session.kernel_id)
            await self._book.forget_gone([session])
        return None

    async def _environment(self, path: str, name: str | None) -> dict[str, str]:
        """The variables that a session adds to its kernel's environment.

        Raises `InvalidPath` or another `InvalidRequest` for a path or name that no kernel's
        environment can have; no session may have it either.
        """
        cwd = await self._kernels.locating.cwd_for_path(path)
        if name is not None and "\0" in name:
            raise InvalidRequest("name: holds a NUL character")
        value = path if name is None else os.path.join(cwd, name)
        return kernel_environment({}, (), {"JPY_SESSION_NAME": value})

    async def _start_for(
        self,
        path: str,
        env: Mapping[str, str],
        kernel_name: str | None,
        kernel_id: str | None,
        given: Mapping[str, Value] | None,
    ) -> str:
        """The id of a kernel that is started for a new session."""
        try:
            kernel = await self._kernels.driving.start(
                kernel_name, path=path, env=env, kernel_id=kernel_id, given=given
            )
        except KernelSpecNotFound:
            shown = kernel_name or self._kernels.specs.default_name
            raise KernelUnavailable(
                f"The '{shown}' kernel is not available. Please pick another suitable "
                "kernel instead, or install that kernel.",
                f"{shown} not found",
            ) from None
        except InvalidKernelId:
            raise InvalidKernelId("kernel.id: must be a UUID") from None
        return kernel.id

    async def _start_another(
        self,
        path: str,
        env: Mapping[str, str],
        kernel_name: str,
        given: Mapping[str, Value] | None,
    ) -> str:
        """The id of a kernel that is started for a session in place of its present one."""
        try:
            kernel = await self._kernels.driving.start(kernel_name, path=path, env=env, given=given)
        except _TOLD_AS_THEY_ARE:
            raise
        except KernelkeepError as error:
            raise KernelUnavailable(
                f"The '{kernel_name}' kernel could not be started: {error.message!r}",
                f"Error starting kernel {kernel_name}",
            ) from error
        return kernel.id

    async def _shut_down(self, kernel_id: str) -> None:
        with contextlib.suppress(KernelNotFound, NotAuthorized):
            await self._kernels.driving.shut_down(kernel_id)
