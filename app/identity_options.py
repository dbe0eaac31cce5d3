"""The options about services that say who is who: a JupyterHub, an OpenID Connect provider."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator

from .option_types import OptionGroup, Words, spelled
from .origins import is_loopback

__all__ = [
    "CLIENT_SECRET_VARIABLES",
    "DEFAULT_SCOPES",
    "OIDC_ALGORITHMS",
    "Identity",
    "JupyterHub",
    "OpenIDConnect",
]

DEFAULT_SCOPES = [
    # What it takes to work with one's own kernels. The files below root_dir are nobody's own.
    *("kernels:write", "kernels:execute", "sessions:write"),
    *("kernelspecs:read", "events:execute", "owners:read", "api:write"),
]

OIDC_ALGORITHMS = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"),
    "Ed25519",
]
"""Algorithms of signatures that are made with a private key and verified with a public one."""


CLIENT_SECRET_VARIABLES = (
    "KERNELKEEP_JUPYTERHUB_CLIENT_SECRET",
    "KERNELKEEP_OIDC_CLIENT_SECRET",
)


def _one_line(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[ -~]*", value.get_secret_value()):
        raise ValueError("not one line of printable ASCII characters")
    return value


ClientId = Annotated[
    str, spelled(r"[!-~]+", "not the name of an OAuth client, which has no spaces")
]
ClientSecret = Annotated[SecretStr, AfterValidator(_one_line)]


class Identity(OptionGroup):
    """Who is who: what the two services below have in common."""

    table = "identity"

    identity_default_scopes: Words = Field(
        DEFAULT_SCOPES,
        description="Scopes of a user for whom the service names none of this server's scopes; "
        "empty: such a user may do nothing.",
    )
    identity_timeout: float = Field(
        4.0, gt=0, le=8, description="Seconds that a service may take to answer a question."
    )


class JupyterHub(OptionGroup):
    """Users of a JupyterHub."""

    table = "jupyterhub"

    jupyterhub_tokens: bool = Field(
        False,
        description="Let in who shows a token of a JupyterHub. A server that the Hub starts takes "
        "its address, prefix and name and the URL of its API from the variables JUPYTERHUB_*.",
    )
    jupyterhub_api_url: str = Field(
        "", description="URL of the Hub's API, like http://127.0.0.1:8081/hub/api."
    )
    jupyterhub_service: Annotated[
        str, spelled(r"[A-Za-z0-9._~-]+", "not the name of a service, like kernelkeep")
    ] = Field(
        "",
        description="Name of this service at the Hub: a token needs the Hub's scope "
        "access:services!service=NAME, or access:services.",
    )
    jupyterhub_url: str = Field(
        "",
        description="Where browsers find the Hub, to log in for the page: a URL, or a path such as "
        "/hub behind the Hub's proxy.",
    )
    jupyterhub_client_id: ClientId = Field(
        "", description="OAuth client of this service at the Hub; empty: service-NAME."
    )
    jupyterhub_client_secret: ClientSecret = Field(
        SecretStr(""),
        description="Secret of that client: the service's api_token. With none, nobody logs in.",
    )
    jupyterhub_cache_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds after which the Hub is asked again about a token; a token that was "
        "revoked may be good for so long.",
    )
    jupyterhub_outage_seconds: float = Field(
        300.0,
        ge=0,
        description="Seconds for which WebSockets and streams stay open while the Hub does not "
        "answer; new requests are refused meanwhile.",
    )

    @field_validator("jupyterhub_api_url")
    @classmethod
    def _api(cls, value: str) -> str:
        return _http_url(value) if value else value

    @field_validator("jupyterhub_url")
    @classmethod
    def _public(cls, value: str) -> str:
        if re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", value):
            return value
        return _http_url(value) if value else value


class OpenIDConnect(OptionGroup):
    """Users of an OpenID Connect provider."""

    table = "oidc"

    oidc_issuer: str = Field(
        "",
        description="Issuer of the bearer tokens (JWTs) that are accepted: its URL, to the letter. "
        "Takes kernelkeep[oidc].",
    )
    oidc_audience: Words = Field(
        [], description="Audiences of this server: a token must name one of them (aud)."
    )
    oidc_algorithms: Words = Field(
        ["RS256"],
        description="Algorithms of the signatures that are accepted, of RS256 to RS512, PS256 to "
        "PS512, ES256 to ES512 and Ed25519.",
    )
    oidc_name_claim: str = Field(
        "sub",
        min_length=1,
        description="Claim that names the owner. It must be one that users cannot choose "
        "themselves, and that never passes to somebody else.",
    )
    oidc_groups_claim: str = Field(
        "groups",
        min_length=1,
        description="Claim with the names of the user's groups; resource.roles leads into objects.",
    )
    oidc_scopes_claim: str = Field(
        "scope",
        min_length=1,
        description="Claim with the scopes: a text with spaces, or a list.",
    )
    oidc_scope_prefix: str = Field(
        "kernelkeep:",
        min_length=1,
        description="Prefix of this server's scopes in that claim; scopes without it are ignored.",
    )
    oidc_client_id: ClientId = Field(
        "",
        description="Client of this server at the provider, to log in for the page; empty: nobody "
        "logs in.",
    )
    oidc_client_secret: ClientSecret = Field(
        SecretStr(""), description="Secret of that client; empty: it is a public one."
    )
    oidc_login_scopes: Words = Field(
        [], description="Scopes that a login asks the provider for, beside openid."
    )
    oidc_clock_skew: int = Field(
        30,
        ge=0,
        le=300,
        description="Seconds by which the issuer's clock and this one may differ; a token is good "
        "for so much longer.",
    )
    oidc_keys_max_age: float = Field(
        3600.0,
        gt=0,
        le=86400,
        description="Seconds for which the issuer's keys are used. They are fetched again before, "
        "and at once for a token with a new key.",
    )

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(_http_url(value))
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError(
                "not an https URL: whoever can change its answers could let anybody in"
            )
        return value

    @field_validator("oidc_algorithms")
    @classmethod
    def _asymmetric(cls, value: list[str]) -> list[str]:
        if not value or not {*value} <= {*OIDC_ALGORITHMS}:
            raise ValueError(f"some of {', '.join(OIDC_ALGORITHMS)}, and no other")
        return value


def _http_url(value: str) -> str:
    """The URL, if that is one without a query, a fragment or credentials in it."""
    try:
        parts = urlsplit(value)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or "@" in parts.netloc or re.search(r"[?#\s\\]", value) or not value.isprintable():
        raise ValueError("not a URL like https://login.example.org, with nothing behind its path")
    return value
