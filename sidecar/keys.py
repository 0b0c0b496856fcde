"""The door to the keys that sign tokens: a JWK set in a file or at a URL, read again while the process runs.

A set is exchanged as a whole, once it is known to be usable: what cannot be fetched or read leaves the last good one in
place, and an empty list of keys takes all trust away. A file is read at start, or nothing starts; a URL is fetched in
the background, because the LMS may be down when this process is restarted. Exceptions of files, aiohttp and PyJWT stop
here.
"""

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWTError
from jwt.algorithms import RSAAlgorithm

from sidecar.clock import Clock
from sidecar.settings import AuthSettings

__all__ = ["KeySet", "Keyring", "KeysUnusable", "RSAPublicKey", "open_keyring", "parse"]

FILE_POLL_S: Final = 5.0
REFETCH_S: Final = 300.0
# An unknown key id has the set fetched again, but no oftener: anybody can make one up.
MISS_PAUSE_S: Final = 60.0
RETRY_S: Final = 5.0
FETCH_S: Final = 10.0
MAX_BYTES: Final = 1024 * 1024
MIN_KEY_BITS: Final = 2048
_log = structlog.get_logger(__name__)


class KeysUnusable(Exception):
    """Raised when a JWK set cannot be read, or has no key that RS512 could be verified with."""


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """Public keys: by key id, and those that have none."""

    named: Mapping[str, RSAPublicKey]
    unnamed: tuple[RSAPublicKey, ...]

    def candidates(self, kid: str | None) -> Sequence[RSAPublicKey]:
        """The keys that may have signed a token with this key id; the LMS signs without one, so that any may have."""
        if kid is None:
            return [*self.named.values(), *self.unnamed]
        key = self.named.get(kid)
        return self.unnamed if key is None else [key]


Read = Callable[[], Awaitable[bytes | None]]


class Keyring:
    """Holds the set in force; None until the first one was fetched. `run` keeps it up to date."""

    def __init__(self, keys: KeySet | None, clock: Clock, read: Read, *, every_s: float, pause_s: float) -> None:
        """`read` is called every so often, and on a `miss` after a pause; it returns None for what did not change."""
        self.keys = keys
        self._clock = clock
        self._read = read
        self._every_s = every_s
        self._pause_s = pause_s
        self._missed = asyncio.Event()
        # Why the set could not be read when it was last tried.
        self.problem: str | None = None if keys is not None else "not asked yet"

    def miss(self) -> None:
        """Notes that a token names a key that is not in the set: it may be a new one."""
        self._missed.set()

    async def run(self) -> None:
        """Reads the set again, for ever."""
        while True:
            await self._update()
            if self.keys is None:
                await self._clock.sleep(RETRY_S)
                continue
            await self._clock.sleep(self._pause_s)
            waiting = [
                asyncio.ensure_future(self._missed.wait()),
                asyncio.ensure_future(self._clock.sleep(self._every_s - self._pause_s)),
            ]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
            self._missed.clear()

    async def _update(self) -> None:
        try:
            text = await self._read()
            if text is None:
                return
            keys = parse(text, empty=True)
        # ValueError: of a URL that is none, to which the one that was asked leads.
        except (KeysUnusable, OSError, ClientError, TimeoutError, ValueError) as error:
            reason = _reason(error)
            if reason != self.problem:
                self.problem = reason
                _log.warning("the keys of tokens cannot be read; the last ones stay", error=reason)
            return
        if self.problem is not None:
            self.problem = None
            _log.info("the keys of tokens can be read")
        if not _same(keys, self.keys):
            self.keys = keys
            _log.info("keys of tokens", keys=sorted(keys.named), unnamed=len(keys.unnamed))


def open_keyring(settings: AuthSettings, clock: Clock) -> Keyring:
    """The keys that the settings name. Raises KeysUnusable if a file cannot be used."""
    if settings.jwks_file:
        file = _File(Path(settings.jwks_file))
        try:
            keys = parse(file.read() or b"")
        except (OSError, ValueError) as error:
            raise KeysUnusable(f"auth.jwks_file {settings.jwks_file!r}: {_reason(error)}") from error
        except KeysUnusable as error:
            raise KeysUnusable(f"auth.jwks_file {settings.jwks_file!r}: {error}") from error
        return Keyring(keys, clock, file.changed, every_s=FILE_POLL_S, pause_s=FILE_POLL_S)
    if settings.jwks_url:
        return Keyring(None, clock, lambda: fetch(settings.jwks_url), every_s=REFETCH_S, pause_s=MISS_PAUSE_S)
    return Keyring(KeySet({}, ()), clock, _nothing, every_s=REFETCH_S, pause_s=REFETCH_S)


async def fetch(url: str, within_s: float = FETCH_S) -> bytes:
    """The set at a URL. Raises KeysUnusable, ClientError, TimeoutError or OSError."""
    async with (
        ClientSession(timeout=ClientTimeout(total=within_s)) as session,
        session.get(url, headers={"Accept": "application/json"}) as response,
    ):
        if not response.ok:
            raise KeysUnusable(f"HTTP {response.status}")
        text = bytearray()
        async for piece in response.content.iter_any():
            text += piece
            if len(text) > MAX_BYTES:
                raise KeysUnusable(f"more than {MAX_BYTES} bytes")
        return bytes(text)


def parse(text: bytes, *, empty: bool = False) -> KeySet:
    """The keys of a JWK set that RS512 may be verified with. Raises KeysUnusable if there is none.

    `empty`: but for a set that has no keys at all.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeysUnusable("not JSON") from error
    entries = given.get("keys") if isinstance(given, dict) else None
    if not isinstance(entries, list):
        raise KeysUnusable('not a JWK set: it has no list "keys"')
    if empty and not entries:
        return KeySet({}, ())
    named: dict[str, RSAPublicKey] = {}
    unnamed: list[RSAPublicKey] = []
    for entry in entries:
        key = _public_key(entry)
        if key is None:
            continue
        kid = entry.get("kid")
        if isinstance(kid, str):
            named[kid] = key
        else:
            unnamed.append(key)
    if not named and not unnamed:
        raise KeysUnusable(f"it has no public RSA key of {MIN_KEY_BITS} bits or more that signs RS512")
    return KeySet(named, tuple(unnamed))


def _public_key(entry: object) -> RSAPublicKey | None:
    """The key of an entry; None for what is of another kind, or for another use."""
    if not isinstance(entry, dict) or entry.get("kty") != "RSA":
        return None
    if entry.get("use", "sig") != "sig" or entry.get("alg", "RS512") != "RS512":
        return None
    try:
        # Of a private key, which has no place in a set of public ones, the public half is all that is taken.
        key = RSAAlgorithm.from_jwk({name: entry[name] for name in ("kty", "n", "e")})
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return key if isinstance(key, RSAPublicKey) and key.key_size >= MIN_KEY_BITS else None


class _File:
    """A file that is read again once it is another one: replaced, or written to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[int, int, int] | None = None

    def read(self) -> bytes | None:
        """Its bytes; None if they are those that were read before."""
        status = self._path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Reading from anything else may never end.
            raise KeysUnusable("not a file")
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen == self._read:
            return None
        text = self._path.read_bytes()
        self._read = seen
        return text

    async def changed(self) -> bytes | None:
        """The same, off the event loop."""
        return await asyncio.to_thread(self.read)


async def _nothing() -> None:
    return None


def _same(one: KeySet, other: KeySet | None) -> bool:
    """Whether two sets are of the same keys, so that what was verified with one holds with the other."""
    return other is not None and one.named == other.named and one.unnamed == other.unnamed


def _reason(error: Exception) -> str:
    if isinstance(error, KeysUnusable):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
