"""A typed client of the REST API that checks the status codes of the contract."""

from __future__ import annotations

from typing import Any, NotRequired, Self, TypedDict, cast

import httpx

from tests.support.processes import eventually

REQUEST_TIMEOUT = 60  # seconds


class RestartsModel(TypedDict):
    count: int
    last: str
    reason: str


class KernelModel(TypedDict):
    id: str
    name: str
    last_activity: str
    execution_state: str
    connections: int
    generation: int
    reason: NotRequired[str]
    restarts: NotRequired[RestartsModel]
    owner: NotRequired[str]


class KernelSpecModel(TypedDict):
    name: str
    spec: dict[str, Any]
    resources: dict[str, str]


class KernelSpecsModel(TypedDict):
    default: str
    kernelspecs: dict[str, KernelSpecModel]


class StatusModel(TypedDict):
    connections: int
    kernels: int
    last_activity: str
    started: str


class ErrorModel(TypedDict):
    message: str
    reason: str | None
    code: str
    cause: NotRequired[str]
    option: NotRequired[str]


class RestError(Exception):
    """A response with another status than the one that was expected."""

    def __init__(self, response: httpx.Response) -> None:
        request = response.request
        super().__init__(f"{response.status_code} for {request.method} {request.url.path}")
        self.add_note(response.text)
        self.response = response
        self.status = response.status_code

    @property
    def error(self) -> ErrorModel:
        """The error body, checked for its keys."""
        body = self.response.json()
        assert body.keys() - {"short_message", "cause", "option"} == {
            "message",
            "reason",
            "code",
        }, body
        return cast(ErrorModel, body)


class RestClient:
    """An asynchronous context manager; ``http`` is the httpx client, for requests of any kind.

    ``token=None`` sends no credentials.
    """

    def __init__(self, url: str, token: str | None) -> None:
        headers = {} if token is None else {"Authorization": f"token {token}"}
        # trust_env: a proxy of the environment has no business between us and 127.0.0.1.
        self.http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=REQUEST_TIMEOUT,
            trust_env=False,
            # This is plain HTTP, and to load certificates costs more than most tests.
            verify=False,
            # The ``uvicorn`` command, by which some tests start the service, closes an idle
            # connection after 5 s: nothing is sent on one that is about to be closed.
            limits=httpx.Limits(keepalive_expiry=2),
        )

    async def __aenter__(self) -> Self:
        await self.http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def request(
        self, method: str, path: str, status: int = 200, **more: Any
    ) -> httpx.Response:
        """Any request; ``more`` is httpx's (``json``, ``params``, ``headers``, ``content``).

        Raises:
            RestError: the response has another status.
        """
        response = await self.http.request(method, path, **more)
        if response.status_code != status:
            raise RestError(response)
        return response

    async def version(self) -> str:
        return str((await self.request("GET", "/api")).json()["version"])

    async def status(self) -> StatusModel:
        return cast(StatusModel, (await self.request("GET", "/api/status")).json())

    async def kernelspecs(self) -> KernelSpecsModel:
        return cast(KernelSpecsModel, (await self.request("GET", "/api/kernelspecs")).json())

    async def kernelspec(self, name: str) -> KernelSpecModel:
        response = await self.request("GET", f"/api/kernelspecs/{name}")
        return cast(KernelSpecModel, response.json())

    async def kernels(self) -> list[KernelModel]:
        return cast(list[KernelModel], (await self.request("GET", "/api/kernels")).json())

    async def start_kernel(self, name: str | None = None, **body: Any) -> KernelModel:
        """``body`` may have ``path``, ``env`` and ``kernel_id``; without any it is left out."""
        if name is not None:
            body["name"] = name
        more = {"json": body} if body else {}
        response = await self.request("POST", "/api/kernels", 201, **more)
        kernel = cast(KernelModel, response.json())
        assert (
            response.headers["Location"] == f"{self.http.base_url.path}api/kernels/{kernel['id']}"
        )
        return kernel

    async def kernel(self, kernel_id: str) -> KernelModel:
        return cast(KernelModel, (await self.request("GET", _kernel(kernel_id))).json())

    async def interrupt(self, kernel_id: str) -> None:
        await self.request("POST", _kernel(kernel_id, "/interrupt"), 204)

    async def restart(self, kernel_id: str) -> KernelModel:
        response = await self.request("POST", _kernel(kernel_id, "/restart"))
        return cast(KernelModel, response.json())

    async def delete(self, kernel_id: str) -> None:
        await self.request("DELETE", _kernel(kernel_id), 204)

    async def wait_for_state(
        self, kernel_id: str, *states: str, timeout: float = 30
    ) -> KernelModel:
        """The model, once ``execution_state`` is one of ``states``."""

        async def reached() -> KernelModel:
            kernel = await self.kernel(kernel_id)
            assert kernel["execution_state"] in states, kernel
            return kernel

        return await eventually(reached, timeout)


def _kernel(kernel_id: str, action: str = "") -> str:
    return f"/api/kernels/{kernel_id}{action}"
