"""What the application builds when it starts, in order, and takes down in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from fastapi import FastAPI

from .api.authorization import Authorizer
from .api.forwarding import kernel_of
from .api.idempotency import IdempotencyKeys
from .api.identity import Users
from .api.parts import Others, has_parts
from .api.prometheus import Metrics
from .api.readiness import Readiness
from .api.relay import RelayServer
from .api.relay_links import Door, Links
from .api.tokens import note_token
from .api.views import Views
from .managers.files.owned import OwnersContents
from .managers.files.service import ContentsService
from .managers.handover.registry import Registry
from .managers.kernels.construction import multi_kernel_manager
from .managers.kernels.multikernel import MultiKernelManager
from .managers.kernels.ties import NO_TIES, Ties, registered
from .managers.limits.limits import LimitPolicy
from .managers.limits.shares import Shares
from .managers.owners.token_list import TokenList
from .managers.sessions.book import Everywhere, SessionBook
from .managers.sessions.store import SessionKeeping, SessionStore
from .managers.telemetry.audit import AuditLog
from .managers.telemetry.counters import Counters
from .managers.telemetry.events import Events, Schema
from .settings import Settings
from .signals import at_stop_signals

if TYPE_CHECKING:
    from .managers.replicas.group import Group

__all__ = ["Lifespan", "State", "lifespan_of"]


class State(TypedDict):
    """The objects that the lifespan builds; routes reach them through ``request.state``.

    In place of ``contents``, ``kernels`` and ``views``, routes have the views of their caller.
    """

    kernels: MultiKernelManager
    views: Views
    shares: Shares
    audit: AuditLog
    metrics: Metrics
    readiness: Readiness
    users: Users
    authorizer: Authorizer
    contents: ContentsService | OwnersContents
    group: Group | None
    links: Links | None
    others: Others | None


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[State]]


def lifespan_of(
    settings: Settings,
    authorizer: Authorizer,
    event_schemas: Sequence[Schema],
    at_end: Sequence[Callable[[], Awaitable[None]]],
    tokens: TokenList,
    policy: LimitPolicy,
    announce: Callable[[], None],
) -> Lifespan:
    """The lifespan of an application with these settings.

    ``event_schemas`` are those of `read_schemas`. ``announce`` is called when the application
    starts, before anything is built. The functions ``at_end`` are awaited when everything that was
    built has been taken down.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        announce()
        async with AsyncExitStack() as stack:
            for close in at_end:
                stack.push_async_callback(close)
            events = Events(event_schemas)
            state = await _build(settings, authorizer, events, tokens, policy, stack)
            if (group := state["group"]) is not None:
                await _open_relay(app, state, group, settings.root_path, stack)
            yield state

    return lifespan


async def _build(
    settings: Settings,
    authorizer: Authorizer,
    events: Events,
    tokens: TokenList,
    policy: LimitPolicy,
    stack: AsyncExitStack,
) -> State:
    # The stack closes these objects in reverse order. An object may use those that were built
    # before it until its own end: the manager notes the ends of its kernels in the audit log and,
    # by its ties, in the registry.
    counters = Counters()
    shares = Shares(policy, counters)
    audit = AuditLog(
        settings.audit_log,
        counters,
        max_bytes=settings.audit_log_bytes,
        older=settings.audit_log_files,
    )
    stack.push_async_callback(audit.close)
    await tokens.open(partial(note_token, audit))
    ties = await _ties(settings)
    stack.push_async_callback(ties.close)
    manager = multi_kernel_manager(settings, events, counters, audit, ties, shares)
    stack.push_async_callback(manager.close)
    # Kernels are adopted before the first request, so that no client misses a kernel that the last
    # server has left. (Kernels whose adoption takes too long come later.)
    await manager.adopt_kernels()
    # Signals are handled from here on, behind the adoption. A signal that comes earlier ends the
    # server as soon as it has started, and `close` then does what `begin_stop` would have begun.
    stack.enter_context(at_stop_signals(manager.begin_stop))
    group = ties.group(manager)
    sessions = _sessions(settings, ties, manager)
    stack.push_async_callback(sessions.close)
    contents = _contents(settings, manager)
    stack.push_async_callback(contents.close)
    keys = IdempotencyKeys(ties.claims)
    metrics = Metrics(manager, counters, by_owner=settings.metrics_by_owner)
    stack.callback(metrics.close)
    return {
        "kernels": manager,
        "views": Views(manager, sessions, events, keys, tokens, shares, contents),
        "shares": shares,
        "audit": audit,
        "metrics": metrics,
        "readiness": Readiness(manager) if group is None else Readiness(manager, group.problem),
        "users": Users(),
        "authorizer": authorizer,
        "contents": contents,
        "group": group,
        "links": None,
        "others": None,
    }


def _contents(settings: Settings, manager: MultiKernelManager) -> ContentsService | OwnersContents:
    if settings.files_by_owner:
        return OwnersContents(manager.isolation, settings.state_dir, settings.config_files)
    return ContentsService(settings.root_dir, settings.state_dir, settings.config_files)


def _sessions(settings: Settings, ties: Ties, manager: MultiKernelManager) -> SessionBook:
    """The sessions, in a file or in the registry that is shared."""
    elsewhere = manager.elsewhere
    store: SessionKeeping
    if ties.claims is None:
        store = SessionStore(settings.sessions_filepath)
    else:
        from .managers.sessions.shared import SharedSessions

        url = settings.registry_url.get_secret_value()
        store = SharedSessions(url, elsewhere.sessions, ties.claims)
    book = SessionBook(Everywhere(manager, manager.adopting, elsewhere), store)
    elsewhere.on_sessions = book.read_again
    return book


async def _open_relay(
    app: FastAPI, state: State, group: Group, prefix: str, stack: AsyncExitStack
) -> None:
    """Serve requests of other replicas from now on."""

    def is_here(scope: Mapping[str, Any]) -> bool:
        kernel_id = kernel_of(scope, prefix, group)
        return has_parts(scope, prefix) if kernel_id is None else group.is_here(kernel_id)

    wire = group.wire
    state["links"] = links = Links(None if wire is None else wire.client)
    stack.callback(links.close)
    state["others"] = Others(group, links)
    # The last to be opened, and the first to be closed: a request of another replica finds all that
    # a client's request finds.
    group.watch(links.keep)
    relay = RelayServer(app, dict(state), group.socket, is_here)
    await relay.open()
    stack.push_async_callback(relay.close)
    if wire is not None:
        stack.push_async_callback(Door(wire.listening, wire.server, relay.serve).close)


async def _ties(settings: Settings) -> Ties:
    """The ties of this server to others, by the options."""
    if settings.replicated:
        # What PostgreSQL takes is installed, and loaded, only where an option asks for it.
        from .managers.kernels.shared_ties import shared
        from .managers.replicas.registry import SharedRegistry

        return shared(await SharedRegistry.open(settings))
    return registered(Registry(settings.state_dir)) if settings.keeps else NO_TIES
