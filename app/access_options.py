"""The options about who may come in."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from .option_types import OptionGroup, Words

__all__ = ["Access"]


class Access(OptionGroup):
    """Who may come in."""

    auth: Literal["token", "none"] = Field(
        "token", description="'none' lets everybody in; only on a loopback address."
    )
    token: SecretStr = Field(
        SecretStr(""), description="The token clients send; generated and printed when empty."
    )
    serve_page: bool = Field(
        True, description="Serve the page for people at /; else / leads to the API's documentation."
    )
    open_docs: bool = Field(
        False, description="Serve /docs, /openapi.json and /api/spec.yaml without the token."
    )
    serve_metrics: bool = Field(True, description="Serve /metrics for Prometheus.")
    metrics_by_owner: bool = Field(
        False,
        description="Tell at /metrics what the kernels of each owner use, by the owners' names.",
    )
    authenticate_prometheus: bool = Field(True, description="Ask for the token at /metrics.")
    authorizer_class: str = Field(
        "kernelkeep.api.authorization:AllowAll",
        description="Class that decides who may do what: module:Class with a method is_authorized.",
    )
    identity_provider_class: str = Field(
        "",
        description="Class that tells who shows a token which is not this server's: module:Class, "
        "with the methods known, identify and close.",
    )
    trusted_gateways: Words = Field(
        [],
        description="Owners whose clients start kernels for others: KERNEL_USERNAME in a start's "
        "environment names the owner then.",
    )
    allow_remote_access: bool | None = Field(
        None,
        description="Accept any Host header; by default only when not listening on loopback.",
    )
    allowed_hosts: Words = Field(
        [],
        description="The only names, local ones apart, that a Host header may have, *.example.org "
        "among them; empty: as allow_remote_access says.",
    )
    local_hostnames: Words = Field(
        ["localhost"], description="Host names taken for local when remote access is off."
    )
    allow_origin: str = Field("", description="Origin that may call from a browser; * for any.")
    allow_origin_pat: str = Field(
        "", description="Regular expression that the whole Origin must match."
    )
    allow_credentials: bool = Field(
        False, description="Send Access-Control-Allow-Credentials: true."
    )
    open_to_web_pages: bool = Field(
        False,
        description="Start with auth=none although allow_remote_access or allow_origin lets the "
        "web pages of others run code then.",
    )
    max_connections: int = Field(
        0,
        ge=0,
        description="Connections there may be at a time; 0: half as many as the process may have "
        "file descriptors.",
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for name in value:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]+", name):
                raise ValueError("not a host name like lab.example.org, with no port")
        return value

    @field_validator("token")
    @classmethod
    def _sendable(cls, value: SecretStr) -> SecretStr:
        token = value.get_secret_value()
        if token != token.strip() or not token.isprintable():
            raise ValueError("no client can send a token with such a character in it")
        return value

    @field_validator("allow_origin")
    @classmethod
    def _origin(cls, value: str) -> str:
        parts = urlsplit(value)
        if value not in ("", "*", f"{parts.scheme}://{parts.netloc}"):
            raise ValueError("not an origin, like https://lab.example.org with nothing behind it")
        return value

    @field_validator("allow_origin_pat")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value
