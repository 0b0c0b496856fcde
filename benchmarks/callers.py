"""Whoever asks: a caller with a token as the LMS's workers have it, and the requests that they send, byte by byte."""

import base64
import json
import random
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import PyJWS

ISSUER: Final = "http://localhost:18000/oauth2"
AUDIENCE: Final = "lms-key"
DAY_S: Final = 86_400
QUESTIONS: Final = 4_000
"""Enough to cover all catalogs; few enough that no side profits from asking for the same few."""
Json = dict[str, Any]


class Caller:
    """Signs its token with a key of its own, which whoever has read `jwks_file` trusts."""

    def __init__(self, jwks_file: Path) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = key.public_key().public_numbers()
        jwk = {"kid": "bench", "kty": "RSA", "alg": "RS512", "use": "sig", "e": _b64(public.e), "n": _b64(public.n)}
        jwks_file.write_text(json.dumps({"keys": [jwk]}))
        self.token = PyJWS().encode(json.dumps(_claims()).encode(), key, algorithm="RS512", headers={"kid": "bench"})
        self.settings = (
            f'[auth]\nmode = "jwt"\njwks_file = "{jwks_file}"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
        )

    def request(self, target: str) -> bytes:
        """A GET as Python's `requests` sends it on a connection that is kept."""
        return (
            f"GET {target} HTTP/1.1\r\nHost: catalog.example.test\r\nUser-Agent: python-requests/2.32.3\r\n"
            "Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
            f"Authorization: JWT {self.token}\r\n\r\n"
        ).encode()


def contains_target(catalog: str, *keys: str) -> str:
    """Where a catalog is asked whether it contains any of the keys."""
    asked = "&".join(f"course_run_ids={quote(key, safe='')}" for key in keys)
    return f"/api/v1/enterprise-catalogs/{catalog}/contains_content_items/?{asked}"


def questions(catalogs: Sequence[str], keys: Sequence[str], count: int = QUESTIONS) -> list[tuple[str, str]]:
    """Catalogs and keys to ask about, drawn alike from all of them, the same in every run."""
    rnd = random.Random("questions")
    return [(catalogs[n % len(catalogs)], rnd.choice(keys)) for n in range(count)]


def write_requests(file: Path, requests: Sequence[bytes]) -> Path:
    """Writes requests as the load generators read them: each after its length, 32 bits in this machine's order."""
    file.write_bytes(b"".join(struct.pack("=I", len(request)) + request for request in requests))
    return file


def _claims() -> Json:
    """What edx-platform puts into the token of a service's user: with its signature, some 900 bytes."""
    now_s = int(time.time())
    return {
        "aud": AUDIENCE,
        "iss": ISSUER,
        "iat": now_s,
        "exp": now_s + DAY_S,
        "version": "1.2.0",
        "sub": "5f7c1a0e4b7d4c3f9a5e2b8d6c1f0a97",
        "preferred_username": "enterprise_worker",
        "email": "enterprise-worker@example.test",
        "email_verified": True,
        "grant_type": "client-credentials",
        "scopes": ["user_id", "profile", "email"],
        "is_restricted": False,
        "administrator": False,
        "superuser": False,
        "roles": ["enterprise_openedx_operator:*", "enterprise_catalog_admin:*"],
    }


def _b64(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
