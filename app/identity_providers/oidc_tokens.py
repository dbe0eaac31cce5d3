"""Reads and verifies JWTs of an OpenID Connect issuer, and makes principals of their claims."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from joserfc.errors import JoseError
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry

from ..managers.owners.principal import Principal
from ..managers.owners.scopes import Scopes
from .naming import Refused, granted, group_names, identity_of, user_name
from .oidc_keys import Key, key_type

__all__ = ["ClaimRules", "Issued", "ReadToken", "Rules", "principal_of", "read_token", "verify"]

MAX_TOKEN: Final = 16384
"""Characters of the longest token that is looked at."""

_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

_ACCESS_TOKEN: Final = re.compile(r"(application/)?(jwt|([a-z0-9-]+-)?at\+jwt)")

_LAST_SECOND: Final = 2**53
"""A time that no token outlives, and that is exact as a float."""


class Rules(NamedTuple):
    """Which tokens are accepted; ``skew`` is by how many seconds the issuer's clock may differ."""

    issuer: str
    audience: Sequence[str]
    algorithms: Collection[str]
    skew: int


class ClaimRules(NamedTuple):
    """The names of the claims that tell a principal's name, groups and scopes.

    A dot in a name leads into an object: ``a.b`` is the member ``b`` of the claim ``a``.
    """

    name: str
    groups: str
    scopes: str
    scope_prefix: str
    default_scopes: Scopes


class ReadToken(NamedTuple):
    """A token that claims to be the issuer's, decoded. Its signature is not verified yet."""

    kid: str
    signature: CompactSignature
    claims: dict[str, Any]


class Issued(Principal):
    """The principal who shows a token of the issuer, with the key that has signed the token."""

    __slots__ = ("key",)

    key: Key


def read_token(token: str, rules: Rules) -> ReadToken | None:
    """Decode a token, without verifying it; None if it does not name this issuer.

    Raises `Refused` for a token of this issuer that could not be verified by any key.
    """
    if len(token) > MAX_TOKEN or not _JWT.fullmatch(token):
        return None
    try:
        # The registry bounds the length of each part. It also refuses the header "b64".
        signature = extract_compact(token.encode("ascii"), registry=_registry(rules))
        claims = msgspec.json.decode(signature.payload)
    except (JoseError, msgspec.DecodeError, ValueError, TypeError, RecursionError):
        return None  # the token cannot be read, and so does not tell its issuer
    header = signature.headers()
    if not isinstance(claims, dict) or claims.get("iss") != rules.issuer:
        return None
    if not isinstance(header.get("alg"), str) or header["alg"] not in rules.algorithms:
        raise Refused("the token's algorithm is not one that is accepted")
    if "crit" in header or not _is_access_token(header.get("typ", "JWT")):
        raise Refused("the token is of another type")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise Refused("the token does not name its key")
    return ReadToken(kid, signature, claims)


def _registry(rules: Rules) -> JWSRegistry:
    # What a header has beside the standard's parameters must be ignored [RFC 7515, section 4].
    return JWSRegistry(algorithms=rules.algorithms, strict_check_header=False)


def _is_access_token(kind: Any) -> bool:
    """Whether a token's type says that it is an access token [RFC 9068], or just a JWT.

    The type is checked as RFC 8725, section 3.11, asks for.
    """
    if not isinstance(kind, str):
        return False
    return bool(_ACCESS_TOKEN.fullmatch(kind.lower()))


def verify(token: ReadToken, keys: Iterable[Key], rules: Rules, now: float) -> Key:
    """The key that has signed the token, whose claims hold now. Raises `Refused`."""
    kind = key_type(token.signature.headers()["alg"])
    fitting = [key for key in keys if isinstance(key, kind)]
    key = next((key for key in fitting if _is_signed(token, key, rules)), None)
    if key is None:
        raise Refused("the token's signature is wrong")
    if "cnf" in token.claims:
        # Such a token proves nothing without its client's key, which is not checked here: it is no
        # bearer token [RFC 7800].
        raise Refused("the token is bound to a key of its client")
    registry = JWTClaimsRegistry(
        now=int(now),
        leeway=rules.skew,
        iss={"essential": True, "value": rules.issuer},
        aud={"essential": True, "values": [*rules.audience]},
        exp={"essential": True},
    )
    try:
        registry.validate(token.claims)
    except JoseError as error:
        raise Refused(f"the token's claims do not hold: {error.error}") from None
    return key


def _is_signed(token: ReadToken, key: Key, rules: Rules) -> bool:
    try:
        return validate_compact(token.signature, key, registry=_registry(rules))
    except (JoseError, ValueError):  # the key is for another algorithm or another curve
        return False


def principal_of(
    claims: dict[str, Any], rules: ClaimRules, *, skew: int, key: Key, credential: str
) -> Issued:
    """The principal whom a token's verified claims describe. Raises `Refused`."""
    owner = user_name(_claim(claims, rules.name))
    principal = Issued(
        identity_of(owner, claims.get("name")),
        granted(_scopes(_claim(claims, rules.scopes), rules.scope_prefix), rules.default_scopes),
        groups=group_names(_claim(claims, rules.groups)),
        credential=credential,
        expires=float(min(claims["exp"] + skew, _LAST_SECOND)),
    )
    principal.key = key
    return principal


def _scopes(value: Any, prefix: str) -> list[str]:
    """The texts with this prefix, without it: of a list, or of a text with spaces [RFC 8693]."""
    if value is None:
        return []
    texts = value.split(" ") if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused("the token's scopes are no texts")
    return [text.removeprefix(prefix) for text in texts if text.startswith(prefix)]


def _claim(claims: dict[str, Any], name: str) -> Any:
    """A claim by its name, or by a path of names with dots; None if there is none."""
    if name in claims or "." not in name:
        return claims.get(name)
    first, _, rest = name.partition(".")
    inner = claims.get(first)
    return _claim(inner, rest) if isinstance(inner, dict) else None
