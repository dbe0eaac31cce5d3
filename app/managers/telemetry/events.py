"""Events of this server, for subscribers; a schema describes each kind.

The `jupyter_events` library has the schemas, and checks each event against its schema. It is loaded
when a client first subscribes or posts. Until then, and while there are no subscribers, an event
costs next to nothing: it is neither checked nor stored.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...imports import import_jsonschema
from ...plugins import CannotLoad
from ..errors import MAX_NAME, EventSchemaReserved, InvalidEvent, ServerStopping
from ..owners.ownership import NOBODYS, Ownership

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jupyter_events import EventLogger

__all__ = [
    "CORE_EVENT_SCHEMA_PATHS",
    "KERNEL_ACTIONS",
    "KERNEL_LIFECYCLE",
    "About",
    "Events",
    "Schema",
    "Subscription",
    "read_schemas",
]

logger = logging.getLogger(__name__)

Schema = dict[str, Any]
"""An event schema, as it is in a YAML file."""

KERNEL_ACTIONS: Final = "https://events.jupyter.org/jupyter_server/kernel_actions/v1"
KERNEL_LIFECYCLE: Final = "urn:kernelkeep:kernel_lifecycle:v1"

_DIRECTORY: Final = Path(__file__).parent / "event_schemas"
CORE_EVENT_SCHEMA_PATHS: Final = (
    _DIRECTORY / "kernel_actions.v1.yaml",
    _DIRECTORY / "kernel_lifecycle.v1.yaml",
)

MAX_WAITING_BYTES: Final = 2**20
"""How many bytes of events may wait for one subscriber: some thousand events."""

MAX_PROBLEM: Final = 300
"""How many characters of the library's message about a wrong schema are shown."""


class About(NamedTuple):
    """What an event is about: ``kernels``, or ``events`` that clients post; and whose that is."""

    resource: str
    ownership: Ownership


_about: ContextVar[About | None] = ContextVar("about", default=None)
"""What the event is about that is being emitted; None: everybody gets it."""


class Events:
    """The server's events and their subscribers.

    ``extra_schemas`` (see `read_schemas`) are known beside the server's own.
    """

    def __init__(self, extra_schemas: Sequence[Schema] = ()) -> None:
        self._extra_schemas = extra_schemas
        self._logger: EventLogger | None = None
        self._loading = asyncio.Lock()
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    def close(self) -> None:
        """End every subscription, and take no new one: the server stops."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()

    @property
    def has_subscribers(self) -> bool:
        """Whether there are subscribers."""
        return bool(self._subscriptions)

    def emit(self, schema_id: str, data: dict[str, Any], about: Ownership = NOBODYS) -> None:
        """Emit an event of the server. Never raises: no action fails because of its event.

        ``about`` is the ownership of the thing that the event is about: subscribers who may see the
        thing get the event.
        """
        # While the library is being loaded, in a thread, there are no subscribers yet.
        if self._logger is None:  # no client has ever subscribed or posted
            return
        before = _about.set(About("kernels", about))
        try:
            self._logger.emit(schema_id=schema_id, data=data)
        except Exception:
            logger.exception("an event of %s could not be emitted", schema_id)
        finally:
            _about.reset(before)

    async def post(
        self,
        schema_id: str,
        version: str,
        data: dict[str, Any],
        timestamp: datetime | None = None,
        *,
        about: About | None = None,
    ) -> None:
        """Emit an event that a client has posted. Raises `InvalidEvent` or `EventSchemaReserved`.

        As in Jupyter servers, ``data`` is checked against the schema only if there are subscribers.
        All of them get the event, or only those that may see what it is ``about``.
        """
        if schema_id in (KERNEL_ACTIONS, KERNEL_LIFECYCLE):
            raise EventSchemaReserved("Only the server itself tells events of its own schemas")
        # The library adds its own fields (the schema, the time) under such names.
        if any(name.startswith("__") for name in data):
            raise InvalidEvent("data: no name in it may begin with __")
        event_logger = await self._loaded()
        if schema_id not in event_logger.schemas:
            raise InvalidEvent(
                f"The requested schema, {schema_id[:MAX_NAME]}, was not found in the schema "
                "registry. Are you sure it was previously registered?"
            )
        before = _about.set(about)
        try:
            self._post(event_logger, schema_id, version, data, timestamp)
        finally:
            _about.reset(before)

    def _post(
        self,
        event_logger: EventLogger,
        schema_id: str,
        version: str,
        data: dict[str, Any],
        timestamp: datetime | None,
    ) -> None:
        from jsonschema import ValidationError

        registered = str(event_logger.schemas.get(schema_id).version)
        if version != registered:
            raise InvalidEvent(
                f"Unregistered version: {version[:MAX_NAME]!r}≠{registered!r} for `{schema_id}`"
            )
        try:
            json.dumps(data, allow_nan=False)  # subscribers get it as JSON
            event_logger.emit(schema_id=schema_id, data=data, timestamp_override=timestamp)
        except ValidationError as error:
            raise InvalidEvent(_explain(error)) from None
        except ValueError:
            raise InvalidEvent("data: holds a number that JSON does not have") from None
        except RecursionError:
            raise InvalidEvent("data: is nested too deeply") from None

    @asynccontextmanager
    async def subscription(
        self, sees: Callable[[About], bool] | None = None
    ) -> AsyncIterator[Subscription]:
        """A subscription to every event from now on, until the context is left.

        If ``sees`` is given, it tells whether the subscriber gets an event about a thing.
        Raises `ServerStopping`.
        """
        event_logger = await self._loaded()
        # The server may have begun to stop while the library was loaded: `close` has ended the
        # subscriptions of that time, and nothing would end this one.
        if self._closed:
            raise ServerStopping()
        subscription = Subscription(sees)
        # From the look at `_closed` to `add` nothing awaits: `close` finds the subscription. All of
        # them have one listener, as the library makes a task for each listener and event.
        if not self._subscriptions:
            event_logger.add_listener(listener=self._deliver)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            if not self._subscriptions:
                event_logger.remove_listener(listener=self._deliver)

    async def _deliver(self, logger: EventLogger, schema_id: str, data: dict[str, Any]) -> None:  # noqa: ARG002
        """Give an event to its subscribers. The library calls this, in the order of events."""
        # The library runs this as a task that it makes while the event is emitted, and a task
        # begins with the context variables of that moment.
        about = _about.get()
        event = json.dumps({**data, "schema_id": schema_id})
        # Nothing awaits in this loop, so the set stays as it is. A subscription that has begun
        # since the event was emitted gets the event as well.
        for subscription in self._subscriptions:
            if about is None or subscription.sees is None or subscription.sees(about):
                subscription.put(event)

    async def _loaded(self) -> EventLogger:
        """The library's event logger. The first call makes it, in a thread, as that takes long.

        The lock has clients that come meanwhile wait for the one logger, rather than make others.
        """
        async with self._loading:
            if self._logger is None:
                self._logger = await asyncio.to_thread(_event_logger, self._extra_schemas)
        return self._logger


class Subscription:
    """The events that one subscriber has not taken yet, up to `MAX_WAITING_BYTES`.

    A subscriber that is too slow gets all events until the bound was reached, and then the end: it
    misses none in between. ``dropped`` counts the events after that.
    """

    def __init__(self, sees: Callable[[About], bool] | None = None) -> None:
        self.sees = sees
        """Whether the subscriber gets an event about this; None: it gets every event."""
        self.dropped = 0
        self._closed = False
        self._waiting: deque[str] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()

    def put(self, event: str) -> None:
        """Add an event, or count it as dropped."""
        # A single event may have more bytes than the bound: an empty queue takes any.
        if self.dropped or (self._waiting and self._bytes + len(event) > MAX_WAITING_BYTES):
            self.dropped += 1
        else:
            self._waiting.append(event)
            self._bytes += len(event)
        self._arrived.set()

    def miss(self) -> None:
        """Count as dropped an event that this server never got; all later ones are dropped too."""
        self.dropped += 1
        self._arrived.set()

    def close(self) -> None:
        """End the subscription: no further event will come."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> str | None:
        """The next event, as JSON; None at the end, or when the events that followed were dropped.

        This has no timeout: there may be no event for long.
        """
        while not self._waiting:
            if self.dropped or self._closed:
                return None
            # Nothing is suspended between the look above and the wait, so no event is missed.
            self._arrived.clear()
            await self._arrived.wait()
        event = self._waiting.popleft()
        self._bytes -= len(event)
        return event


def read_schemas(paths: Sequence[Path]) -> list[Schema]:
    """The schemas in these files, for `Events`. Raises `CannotLoad` for one that is not valid."""
    if not paths:
        return []
    ids = {schema["$id"] for schema in map(_read_schema, CORE_EVENT_SCHEMA_PATHS)}
    schemas = []
    for path in paths:
        try:
            schema = _read_schema(path.expanduser())
        except Exception as error:  # a file's content can be wrong in any way
            raise CannotLoad(f"--extra-event-schema-paths: {path}: {_in_a_line(error)}") from None
        if schema["$id"] in ids:
            raise CannotLoad(
                f"--extra-event-schema-paths: {path}: there is a schema {schema['$id']} already"
            )
        ids.add(schema["$id"])
        schemas.append(schema)
    return schemas


def _read_schema(path: Path) -> Schema:
    """The schema in a file, checked. Raises an exception of any kind if it is not valid."""
    import_jsonschema()
    from jsonschema import Draft7Validator
    from jupyter_events import yaml
    from jupyter_events.schema import EventSchema

    schema = yaml.load(path)
    if not isinstance(schema, dict):
        raise ValueError("it holds no schema")
    if not isinstance(schema.get("$id"), str):
        raise ValueError("it has no $id")
    Draft7Validator.check_schema(schema)
    EventSchema(schema)
    return schema


def _event_logger(extra_schemas: Sequence[Schema]) -> EventLogger:
    import_jsonschema()
    from jupyter_events import EventLogger

    event_logger = EventLogger()
    for path in CORE_EVENT_SCHEMA_PATHS:
        event_logger.register_event_schema(path)
    for schema in extra_schemas:
        event_logger.register_event_schema(schema)
    return event_logger


def _in_a_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return " ".join(text.split())[:MAX_PROBLEM] or type(error).__name__


def _explain(error: ValidationError) -> str:
    """Which rule of the schema an event's data break, without repeating a value."""
    where = ".".join(("data", *(str(part) for part in error.absolute_path)))
    return f"{where}: does not match the schema: {error.validator}: {error.validator_value}"
