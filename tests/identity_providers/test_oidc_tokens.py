"""JWTs: which are the issuer's, which of those are good, and what their claims say."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from joserfc import jwk

from app.identity_providers.naming import Refused
from app.identity_providers.oidc_keys import Key, parse_keys
from app.identity_providers.oidc_tokens import (
    ClaimRules,
    Issued,
    Rules,
    principal_of,
    read_token,
    verify,
)
from app.managers.owners.scopes import Scopes
from tests.support.jwts import AUDIENCE, Signer, claims_of, compact, jwks, rsa_key, segment, signed

ISSUER = "https://login.example.org/realms/lab"
RULES = Rules(ISSUER, (AUDIENCE, "other"), frozenset({"RS256"}), 30)
DEFAULT = Scopes.parse(["kernels:read"])
CLAIMS = ClaimRules("sub", "groups", "scope", "kernelkeep:", DEFAULT)


def keys_of(*keys: Signer, rules: Rules = RULES) -> dict[str, list[Key]]:
    return parse_keys(jwks(keys), rules.algorithms)


def accepted(
    token: str,
    keys: dict[str, list[Key]] | None = None,
    *,
    rules: Rules = RULES,
    claims: ClaimRules = CLAIMS,
    now: float | None = None,
) -> Issued | None:
    """Who shows a token; None for a token that is not the issuer's. Raises `Refused`."""
    read = read_token(token, rules)
    if read is None:
        return None
    known = keys_of(rsa_key()) if keys is None else keys
    key = verify(read, known.get(read.kid, []), rules, time.time() if now is None else now)
    return principal_of(read.claims, claims, skew=rules.skew, key=key, credential="oidc:0")


def good(**more: Any) -> str:
    return signed(claims_of(ISSUER, **more), rsa_key())


def refused(token: str, keys: dict[str, list[Key]] | None = None, **more: Any) -> str:
    with pytest.raises(Refused) as caught:
        accepted(token, keys, **more)
    return str(caught.value)


def test_a_good_token() -> None:
    exp = int(time.time()) + 100
    principal = accepted(good(exp=exp, groups=["physics"], scope="openid kernelkeep:kernels:write"))
    assert principal is not None
    assert principal.owner == "anna"
    assert principal.groups == {"physics"}
    assert list(principal.scopes) == ["kernels:write"]
    assert principal.expires == exp + RULES.skew
    assert principal.key == keys_of(rsa_key())["first"][0]


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("RS512", rsa_key),
        ("PS256", rsa_key),
        ("ES256", lambda: jwk.ECKey.generate_key("P-256", {"kid": "first"})),
        ("ES384", lambda: jwk.ECKey.generate_key("P-384", {"kid": "first"})),
        ("Ed25519", lambda: jwk.OKPKey.generate_key("Ed25519", {"kid": "first"})),
    ],
)
def test_every_algorithm_that_the_options_name(algorithm: str, make: Callable[[], Signer]) -> None:
    key = make()
    rules = RULES._replace(algorithms=frozenset({algorithm}))
    token = signed(claims_of(ISSUER), key, algorithm=algorithm)
    assert accepted(token, keys_of(key, rules=rules), rules=rules) is not None
    assert "algorithm" in refused(token)


@pytest.mark.parametrize(
    "token",
    [
        lambda: "",
        lambda: "kk_0123456789abcdef",
        lambda: "a.b",
        lambda: "a.b.c.d",
        lambda: "....",
        lambda: "a.b.c",
        lambda: "é.b.c",
        lambda: compact({}, {}),
        lambda: compact({"alg": "RS256", "kid": "first"}, []),
        lambda: compact({"alg": "RS256", "kid": "first"}, "text"),
        lambda: compact({"alg": "RS256", "kid": "first"}, b"[" * 50_000),
        lambda: compact({"alg": "RS256", "kid": "first"}, b'{"iss": NaN}'),
        lambda: compact([], {"iss": ISSUER}),
        lambda: compact(b"\xff\xfe", {"iss": ISSUER}),
        lambda: compact({"alg": "RS256", "b64": False, "crit": ["b64"]}, {"iss": ISSUER}),
        lambda: signed(claims_of("https://elsewhere.example.org"), rsa_key()),
        lambda: signed(claims_of(ISSUER + "/"), rsa_key()),
        lambda: signed({**claims_of(ISSUER), "iss": [ISSUER]}, rsa_key()),
        lambda: signed({**claims_of(ISSUER), "more": "x" * 2**20}, rsa_key()),
        # A token in a token, as text and as a claim.
        lambda: signed(signed(claims_of(ISSUER), rsa_key()).encode(), rsa_key()),
        lambda: signed(
            {"jwt": signed(claims_of(ISSUER), rsa_key())}, rsa_key(), header={"cty": "JWT"}
        ),
        lambda: "x" * 2**20,
    ],
    ids=map(str, count()),
)
def test_what_does_not_say_that_it_is_the_issuer_s(token: Callable[[], str]) -> None:
    assert read_token(token(), RULES) is None


def hmac_with_public_key() -> str:
    """HS256 with the text of the public key as the secret: [RFC 8725, section 2.1]."""
    content = f"{segment({'alg': 'HS256', 'kid': 'first'})}.{segment(claims_of(ISSUER))}"
    pem = rsa_key().as_pem(private=False)
    digest = hmac.digest(pem, content.encode(), hashlib.sha256)
    return f"{content}.{segment(digest)}"


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (lambda: compact({"alg": "none"}, claims_of(ISSUER)), "algorithm"),
        (lambda: compact({"alg": "none", "kid": "first"}, claims_of(ISSUER)), "algorithm"),
        (lambda: compact({"alg": "NONE", "kid": "first"}, claims_of(ISSUER)), "algorithm"),
        (lambda: compact({"alg": ["RS256"], "kid": "first"}, claims_of(ISSUER)), "algorithm"),
        (hmac_with_public_key, "algorithm"),
        (lambda: signed(claims_of(ISSUER), rsa_key(), algorithm="RS512"), "algorithm"),
        (lambda: signed(claims_of(ISSUER), rsa_key(), header={"kid": None}), "name its key"),
        (lambda: compact({"alg": "RS256", "kid": ""}, claims_of(ISSUER)), "name its key"),
        (lambda: compact({"alg": "RS256", "kid": {"a": 1}}, claims_of(ISSUER)), "name its key"),
        (lambda: signed(claims_of(ISSUER), rsa_key(), header={"kid": "../first"}), "signature"),
        (lambda: signed(claims_of(ISSUER), rsa_key("second")), "signature"),
        (
            lambda: signed(claims_of(ISSUER), rsa_key("second"), header={"kid": "first"}),
            "signature",
        ),
        (lambda: good()[:-5], "signature"),
        (lambda: good().rpartition(".")[0] + ".", "signature"),
        (lambda: good() + "A", "signature"),
        (lambda: signed(claims_of(ISSUER), rsa_key(), header={"typ": "logout+jwt"}), "type"),
        (lambda: signed(claims_of(ISSUER), rsa_key(), header={"typ": "dpop+jwt"}), "type"),
        (
            lambda: compact({"alg": "RS256", "kid": "first", "crit": ["exp"]}, claims_of(ISSUER)),
            "type",
        ),
        (lambda: good(aud=None), "claims"),
        (lambda: good(aud="kernelkeep2"), "claims"),
        (lambda: good(aud=["a", "b"]), "claims"),
        (lambda: good(aud={"kernelkeep": True}), "claims"),
        (lambda: good(aud=[]), "claims"),
        (lambda: good(aud=[["kernelkeep"]]), "claims"),
        (lambda: good(exp=None), "claims"),
        (lambda: good(exp=time.time() - 31), "claims"),
        (lambda: good(exp="9999999999"), "claims"),
        (lambda: good(exp=True), "claims"),
        (lambda: good(nbf=time.time() + 60), "claims"),
        (lambda: good(nbf="never"), "claims"),
        (lambda: good(iat=time.time() + 60), "claims"),
        (lambda: good(sub=None), "name"),
        (lambda: good(cnf={"jkt": "x"}), "bound"),
        (lambda: good(scope=5), "scopes"),
        (lambda: good(scope=["kernelkeep:kernels:read", 5]), "scopes"),
    ],
    ids=map(str, count()),
)
def test_a_token_that_is_wrong_in_one_thing(token: Callable[[], str], says: str) -> None:
    assert says in refused(token())


def test_a_claim_that_was_changed_after_the_signature() -> None:
    header, _, signature = good().split(".")
    assert "signature" in refused(f"{header}.{segment(claims_of(ISSUER, 'ben'))}.{signature}")


def test_the_clock_may_differ_by_the_skew_and_no_more() -> None:
    now = time.time()
    token = good(exp=int(now) - 20, nbf=int(now) - 3600)
    assert accepted(token) is not None
    assert "claims" in refused(token, now=now + 20)
    assert accepted(good(nbf=int(now) + 20)) is not None
    late = accepted(good(exp=10**400))
    assert late is not None
    assert late.expires is not None
    assert late.expires > now + 10**9


@pytest.mark.parametrize(
    "kind", ["JWT", "at+jwt", "application/at+jwt", "okta-internal-at+jwt", None]
)
def test_types_of_access_tokens(kind: str | None) -> None:
    token = signed(claims_of(ISSUER), rsa_key(), header={"typ": kind, "x5t": "abc", "nonce": "n"})
    assert accepted(token) is not None


def test_an_audience_among_others() -> None:
    assert accepted(good(aud=["account", "other"])) is not None


@pytest.mark.parametrize(
    "name",
    [
        *("", " anna", "..", ".", "a/b", "a\\b", "a\nb", "a\x00b", "a\u202eb", "\ud800"),
        *("x" * 1024, "e\u0301va"),
        *(5, None, ["anna"], {"anna": 1}, True),
    ],
)
def test_names_that_no_owner_can_have(name: Any) -> None:
    claims = claims_of(ISSUER, sub=name) if name is not None else claims_of(ISSUER, sub=None)
    with pytest.raises(Refused, match="name"):
        accept_claims(claims)


def accept_claims(claims: dict[str, Any], rules: ClaimRules = CLAIMS) -> Issued:
    (key,) = keys_of(rsa_key())["first"]
    return principal_of(claims, rules, skew=0, key=key, credential="")


def test_names_that_differ_are_different_owners() -> None:
    names = ["Anna", "anna", "\u00e9va", "eva", "auth0|5f7", "anna@example.org"]
    owners = [accept_claims(claims_of(ISSUER, sub=name)).owner for name in names]
    assert owners == names


def test_how_a_user_is_called() -> None:
    named = accept_claims(claims_of(ISSUER, "17", name="Anna Müller"))
    assert named.identity.display_name == "Anna Müller"
    assert named.identity.username == named.owner == "17"
    for name in ("a\nb", 5, "x" * 300, None):
        assert accept_claims({**claims_of(ISSUER, "17"), "name": name}).identity.name == "17"


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        (["physics", "maths"], {"physics", "maths"}),
        ("physics", {"physics"}),
        (["physics", "/maths", "..", 5, None, "a\nb"], {"physics"}),
        ([f"g{number}" for number in range(1001)], set()),
        ({"physics": True}, set()),
        (None, set()),
        (17, set()),
    ],
)
def test_groups(groups: Any, names: set[str]) -> None:
    assert accept_claims({**claims_of(ISSUER), "groups": groups}).groups == names


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("openid profile", ["kernels:read"]),
        (None, ["kernels:read"]),
        ("", ["kernels:read"]),
        ([], ["kernels:read"]),
        ("openid kernelkeep:sessions:read kernelkeep:kernels:execute", None),
        (["kernelkeep:sessions:read", "kernelkeep:kernels:execute"], None),
        # What is no scope gives nothing, and does not give the default either.
        ("kernelkeep:kernels:everything", []),
        ("kernelkeep:", []),
        ("kernelkeep:*", ["*"]),
        ("kernelkeep:kernels:read!group=physics", ["kernels:read!group=physics"]),
    ],
)
def test_scopes(value: Any, scopes: list[str] | None) -> None:
    wanted = ["kernels:execute", "sessions:read"] if scopes is None else scopes
    claims = {**claims_of(ISSUER), "scope": value}
    assert list(accept_claims(claims).scopes) == wanted


def test_claims_are_where_the_options_say() -> None:
    rules = ClaimRules("email", "realm.roles", "https://x.org/scopes", "kk.", DEFAULT)
    claims = claims_of(
        ISSUER,
        email="anna@x.org",
        realm={"roles": ["physics"]},
    )
    claims["https://x.org/scopes"] = ["kk.metrics:read"]
    principal = accept_claims(claims, rules)
    assert principal.owner == "anna@x.org"
    assert principal.groups == {"physics"}
    assert list(principal.scopes) == ["metrics:read"]
    assert accept_claims({**claims, "realm": "roles"}, rules).groups == set()


def test_two_keys_of_one_id() -> None:
    other = jwk.ECKey.generate_key("P-256", {"kid": "first"})
    rules = RULES._replace(algorithms=frozenset({"RS256", "ES256"}))
    keys = parse_keys(jwks([other, rsa_key()]), rules.algorithms)
    assert accepted(good(), keys, rules=rules) is not None
    token = signed(claims_of(ISSUER), other, algorithm="ES256")
    assert accepted(token, keys, rules=rules) is not None


def test_a_token_is_verified_fast_enough_for_a_loop() -> None:
    """A verification blocks the loop; it must not take longer than other things do."""
    token, keys = good(), keys_of(rsa_key())
    started = time.process_time()
    for _ in range(100):
        accepted(token, keys)
    assert time.process_time() - started < 1


def test_the_payload_is_json_of_one_kind_only() -> None:
    content = json.dumps(claims_of(ISSUER))[:-1] + ', "exp": NaN}'
    assert read_token(signed(content.encode(), rsa_key()), RULES) is None
