"""Who signs tokens in tests: one RSA pair for all, the actors of the recordings, and a clock that waits for nobody."""

import asyncio
import base64
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import PyJWS

from sidecar.auth import Tokens, _SharedSecret
from sidecar.keys import Keyring, KeySet, open_keyring, parse
from sidecar.settings import AuthSettings
from tests.fakes import FakeClock

ACTORS: Final = Path(__file__).parent / "contract" / "golden" / "actors.json"
ISSUER: Final = "http://localhost:18000/oauth2"
AUDIENCE: Final = "lms-key"
SECRET: Final = "lms-secret"


class StillClock(FakeClock):
    """A clock on which whoever sleeps never wakes."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


@cache
def private_key(name: str) -> rsa.RSAPrivateKey:
    """A key of this name, the same in the whole run."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(name: str = "test", **fields: Any) -> dict[str, Any]:
    """The public half of a key, under its name; fields that are None are left out."""
    public = private_key(name).public_key().public_numbers()
    whole = {"kid": name, "kty": "RSA", "alg": "RS512", "use": "sig", "e": _number(public.e), "n": _number(public.n)}
    return {key: value for key, value in (whole | fields).items() if value is not None}


def jwks(*keys: dict[str, Any]) -> bytes:
    """A JWK set."""
    return json.dumps({"keys": list(keys)}).encode()


def settings(path: Path, **fields: Any) -> AuthSettings:
    """What trusts the tokens that are signed here; the set is written into a folder."""
    file = path / "jwks.json"
    file.write_bytes(jwks(jwk()))
    whole = {"jwks_file": str(file), "hs256_secret": SECRET} | fields
    return AuthSettings(mode="jwt", issuer=ISSUER, audience=AUDIENCE, **whole)


def tokens(path: Path, clock: FakeClock) -> Tokens:
    """Verifies the tokens that are signed here."""
    trusting = settings(path)
    return Tokens(trusting, open_keyring(trusting, clock), clock)


def keyring(*keys: dict[str, Any], clock: FakeClock) -> Keyring:
    """Holds these keys, and never reads anything again."""

    async def nothing() -> None:
        return None

    held: KeySet | None = parse(jwks(*keys)) if keys else None
    return Keyring(held, clock, nothing, every_s=5.0, pause_s=5.0)


def claims_of(actor: str) -> dict[str, Any]:
    """What the token of a recorded actor says."""
    claims: dict[str, Any] = json.loads(ACTORS.read_text())[actor]
    return claims


def actors() -> list[str]:
    """All recorded actors."""
    return list(json.loads(ACTORS.read_text()))


def token_of(actor: str, now_ms: int) -> str:
    """The token with which an actor was recorded."""
    claims = claims_of(actor)
    if actor == "expired":
        claims["exp"] = now_ms // 1000 - 3600
    if actor == "bad_signature":
        return shared(claims, "some-other-secret-some-other-secret")
    return shared(claims, SECRET) if actor == "hs256_symmetric" else signed(claims)


def signed(claims: dict[str, Any], key: str = "test", *, kid: str | None = "test", algorithm: str = "RS512") -> str:
    """A token that a key has signed."""
    headers = None if kid is None else {"kid": kid}
    return PyJWS().encode(json.dumps(claims).encode(), private_key(key), algorithm=algorithm, headers=headers)


def shared(claims: dict[str, Any], secret: str = SECRET) -> str:
    """A token that is signed with a shared secret, however short."""
    jws = PyJWS()
    jws.unregister_algorithm("HS256")
    jws.register_algorithm("HS256", _SharedSecret(_SharedSecret.SHA256))
    return jws.encode(json.dumps(claims).encode(), secret, algorithm="HS256", headers={"kid": "test"})


def _number(n: int) -> str:
    return base64.urlsafe_b64encode(n.to_bytes((n.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
