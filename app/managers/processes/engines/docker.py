"""The engine Docker, and podman by the same API: a job is a container."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...errors import KeeperUnavailable
from ..hosts.errors import EngineNotInstalled, HostUnreachable, HostUnusable, ImageUnusable
from .docker_credentials import HUB, credentials_of, pulled_from_hub, registry_of
from .docker_options import DockerOptions, container_of
from .docker_words import (
    GENERATION,
    IMAGE_ABSENT,
    KEEPER,
    KERNEL,
    OWNER,
    SERVICE,
    Pull,
    job_of,
    refused,
    why_ended,
)
from .engine import Job, JobState, Order

if TYPE_CHECKING:
    from aiodocker import Docker

__all__ = ["DockerEngine"]

logger = logging.getLogger(__name__)

CALL_SECONDS: Final = 15.0
"""How long the engine may take for an answer."""

START_SECONDS: Final = 60.0
"""How long the engine may take to make and start a container, on a busy disk."""

TAIL_LINES: Final = 12

NOT_CONNECTED: Final = 900
"""aiodocker's own status for an engine that cannot be reached."""

LISTED: Final = ("Id", "State", "Labels")
"""The fields that are read of each container in a list."""

ABSENT: Final = 404
BEING_REMOVED: Final = 409
GONE: Final = (ABSENT, BEING_REMOVED)
"""The statuses of answers about a container that is gone, or is being removed."""

_CHANGES: Final = frozenset(("start", "die", "died", "destroy", "remove", "pause", "unpause"))
"""The events after which the list of containers is read again."""

LIST_SECONDS: Final = 30.0
"""After how long without an event the list is read again, as an event may be missed."""

AGAIN_SECONDS: Final = (1.0, 3.0)
"""The pauses before the list is read again after an event: a busy Docker lists a container as
running for a while after the event of its end."""

TOGETHER_SECONDS: Final = 0.1
"""How long further events are collected after one has come: the list is read once for all."""


class DockerEngine:
    """One Docker, or podman, as this service sees it: ``service`` is the label of its containers.

    ``on_words`` is called with a kernel's id and the progress of the image that is pulled for it.
    """

    absent_is_ended = True
    """As `Engine.absent_is_ended`."""

    def __init__(self, url: str, service: str, on_words: Callable[[str, str], None]) -> None:
        self.name = f"the engine at {url}"
        self._url = url
        self._service = service
        self._on_words = on_words
        self._opened: Docker | None = None

    @property
    def _docker(self) -> Docker:
        # Made when it is first needed, in the running loop: aiodocker is an extra, and a server
        # whose kernelspecs name this engine starts without it.
        if self._opened is None:
            try:
                import aiodocker
            except ImportError:
                text = "Kernels in containers take aiodocker: pip install 'kernelkeep[docker]'"
                raise EngineNotInstalled(text) from None
            try:
                self._opened = aiodocker.Docker(url=self._url)
            except (ValueError, OSError) as error:
                raise HostUnusable(f"{self.name} cannot be used: {error}") from error
        return self._opened

    @contextlib.asynccontextmanager
    async def _asked(self, seconds: float = CALL_SECONDS) -> AsyncIterator[Docker]:
        """A block that uses the engine's API, within so many seconds.

        An engine that does not answer becomes `HostUnreachable`; `DockerError` passes. A request
        that is cut short by the bound may have come into effect all the same.
        """
        docker = self._docker
        import aiohttp
        from aiodocker.exceptions import DockerError

        try:
            async with asyncio.timeout(seconds):
                yield docker
        except TimeoutError:
            raise HostUnreachable(f"{self.name} does not answer within {seconds:g} s") from None
        except DockerError as error:
            if error.status == NOT_CONNECTED:
                raise HostUnreachable(f"{self.name} cannot be reached: {error.message}") from error
            raise
        except (OSError, aiohttp.ClientError) as error:
            raise HostUnreachable(f"{self.name} cannot be reached: {error}") from error
        except (ValueError, LookupError, TypeError) as error:
            # aiodocker raises these for an answer that is not JSON, or lacks a field. A bug of this
            # server may raise them, too: so the traceback is logged.
            logger.warning("%s makes no sense", self.name, exc_info=error)
            raise HostUnreachable(f"{self.name} makes no sense: {error}") from error

    # The verbs

    async def submit(self, order: Order) -> None:
        """As `Engine.submit`: the image is pulled first, if need be."""
        from aiodocker.exceptions import DockerError

        options: DockerOptions = order.options
        await self._have_image(order.kernel_id, options)
        labels = {
            SERVICE: self._service,
            KEEPER: order.keeper_id,
            KERNEL: order.kernel_id,
            **({OWNER: order.owner} if order.owner else {}),
            GENERATION: str(order.generation),
        }
        # A container with this name is made once at the most, even if the answer is lost.
        name = f"kernelkeep-{order.keeper_id}-{order.generation}"
        asked = container_of(options, labels)
        container: Any = None
        try:
            async with self._asked(START_SECONDS) as docker:
                container = await docker.containers.create(asked, name=name)
                # Attached before the start: the stdin, which has a secret, is sent over this
                # connection only. When it is closed, the process reads the end of its stdin
                # (StdinOnce), and no other connection can give it more.
                async with container.attach(stdin=True) as stream:
                    await container.start()
                    await stream.write_in(order.stdin)
        # A container that was not given its stdin is of no use. If the answer to its creation is
        # lost, it was never started: it is listed as ended (`job_of`), and removed for that.
        except DockerError as error:
            await self._remove_quietly(container)
            raise refused(error.message, options.image, options.python) from error
        except BaseException:
            await self._remove_quietly(container)
            raise

    async def find(self, keeper_id: str) -> list[Job]:
        """As `Engine.find`."""
        return await self._list(f"{KEEPER}={keeper_id}")

    async def watch(self) -> AsyncGenerator[Sequence[Job], None]:
        """As `Engine.watch`: one stream of events, and a list when one has come."""
        filters = {"type": ["container"], "label": [f"{SERVICE}={self._service}"]}
        events: Any = self._docker.events
        # Subscribed before the first list: events that come meanwhile are in the subscriber's
        # queue. If the stream begins even later, a change may be missed until the next list
        # (`LIST_SECONDS`).
        subscriber = events.subscribe(filters=msgspec.json.encode(filters).decode())
        try:
            pauses: list[float] = []
            while True:
                yield await self._list()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pauses.pop(0) if pauses else LIST_SECONDS):
                        await self._change(subscriber)
                    # Set outside of the bound: each event is followed by the further lists.
                    pauses = [*AGAIN_SECONDS]
                    async with asyncio.timeout(TOGETHER_SECONDS):
                        while True:
                            await self._change(subscriber)
        finally:
            # aiodocker's object keeps a stream that has ended: without this it begins no other.
            with contextlib.suppress(Exception):
                await events.stop()
            events.task = None

    async def _change(self, subscriber: Any) -> None:
        """Return when an event of a container has come, after which the list has to be read."""
        while True:
            event = await subscriber.get()
            if event is None:  # a list alone would tell an end, but up to `LIST_SECONDS` late
                raise HostUnreachable(f"{self.name} has ended its stream of events")
            if str(event.get("Action") or event.get("status") or "") in _CHANGES:
                return

    async def cancel(self, job: Job) -> None:
        """As `Engine.cancel`: its keeper is killed with all its processes."""
        from aiodocker.exceptions import DockerError

        try:
            async with self._asked(START_SECONDS) as docker:
                container = docker.containers.container(job.where)
                try:
                    await container.delete(force=True, v=True)
                except DockerError as error:
                    if error.status != BEING_REMOVED:
                        raise
                    # Somebody else removes the container, whose processes may run until that is
                    # done: the next job must not begin before.
                    await container.wait(condition="removed")
        except DockerError as error:
            if error.status != ABSENT:
                raise HostUnusable(f"A container could not be removed: {error.message}") from error

    async def explain(self, job: Job) -> KeeperUnavailable:
        """As `Engine.explain`."""
        from aiodocker.exceptions import DockerError

        try:
            async with self._asked() as docker:
                container = docker.containers.container(job.where)
                found = await container.show()
                lines = await container.log(stdout=True, stderr=True, tail=TAIL_LINES)
        except DockerError as error:
            if error.status in GONE:
                return HostUnusable("The container was removed")
            return HostUnusable(f"The container has ended, and is not told of: {error.message}")
        return why_ended(found, "".join(lines).strip())

    async def joined(self, keeper_id: str, generation: int) -> None:
        """As `Engine.joined`: does nothing, as the stdin is stored nowhere."""

    async def own(self, keeper_id: str, generation: int, owner: str) -> None:
        """As `ParkingEngine.own`: does nothing, as labels of a container cannot be changed."""

    async def close(self) -> None:
        """As `Engine.close`."""
        if self._opened is not None:
            await self._opened.close()

    # Helpers

    async def _list(self, *labels: str) -> list[Job]:
        from aiodocker.exceptions import DockerError

        wanted = [f"{SERVICE}={self._service}", *labels]
        filters = msgspec.json.encode({"label": wanted}).decode()
        try:
            async with self._asked() as docker:
                found = await docker.containers.list(all=True, filters=filters)
        except DockerError as error:
            text = f"{self.name} does not tell its containers: {error.message}"
            raise HostUnusable(text) from error
        told = [{name: each[name] for name in LISTED if name in each} for each in found]
        jobs = [job_of(each) for each in told]
        return sorted((job for job in jobs if job is not None), key=lambda job: job.generation)

    async def _have_image(self, kernel_id: str, options: DockerOptions) -> None:
        """Pull the image, if the options want it and it is not there. Raises `HostUnusable`."""
        from aiodocker.exceptions import DockerError

        if options.pull != "always" and await self._has_image(options.image):
            return
        if options.pull == "never":
            raise ImageUnusable(f"The image {options.image} is not there, and is not to be pulled")
        # The credentials are read at each pull, and kept nowhere: the operator may renew the file.
        login, image = None, options.image
        if options.credentials:
            login = await asyncio.to_thread(credentials_of, options.credentials, image)
            if login is not None and registry_of(image) == HUB:
                # aiodocker takes what is before the first slash for the registry.
                image = pulled_from_hub(image)
        auth = None if login is None else msgspec.to_builtins(login)
        pull = Pull(options.image)
        self._on_words(kernel_id, pull.on_progress({}))
        try:
            async with self._asked(options.pull_timeout) as docker:
                async for told in docker.images.pull(image, auth=auth, stream=True):
                    self._on_words(kernel_id, pull.on_progress(told))
        except DockerError as error:
            text = f"The image {options.image} cannot be pulled: {error.message}"
            raise ImageUnusable(text) from error

    async def _has_image(self, image: str) -> bool:
        from aiodocker.exceptions import DockerError

        try:
            async with self._asked() as docker:
                await docker.images.inspect(image)
        except DockerError as error:
            if error.status == IMAGE_ABSENT:
                return False
            raise ImageUnusable(f"The image {image} cannot be used: {error.message}") from error
        return True

    async def _remove_quietly(self, container: Any) -> None:
        if container is not None:
            # If that fails, the job is ended before the next one of this kernel, or as a stranger.
            with contextlib.suppress(KeeperUnavailable):
                await self.cancel(Job(container.id, "", 0, JobState.ENDED))
