"""Whether a token is good, and whose it is. Pure but for the clock that is passed in; keys come from `sidecar.keys`.

1. A request brings `Authorization: JWT <token>`; without that header, if it says USE-JWT-COOKIE: true, the two cookies
   that browsers keep a token in. Anything else, `Bearer` too, is no credentials.
2. The token's algorithm says which kind of key may verify it, and no key serves two: RS512 a public key of the JWK set,
   HS256 the shared secret, where one is set. There is no third.
3. It must name the issuer, the audience and its holder, say when it was issued, and have an `exp` that is still to
   come: there is no leeway, because tokens live for an hour and are renewed before. An `nbf` is held to; `iat` is not,
   so that clocks may differ a little. A `version` beyond those that are known may mean anything.
4. What was found out is kept by the token's text, within bounds, until `exp` or until the keys change.

Whatever is wrong with a token is told in the same two words: a caller who forges one learns nothing about how near it
was. PyJWT's exceptions stop here.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiohttp import web
from jwt import PyJWS, PyJWTError
from jwt.algorithms import HMACAlgorithm

from sidecar.clock import Clock
from sidecar.keys import Keyring, RSAPublicKey
from sidecar.parameters import Refusal
from sidecar.roles import Caller
from sidecar.settings import AuthSettings

NO_CREDENTIALS: Final = "Authentication credentials were not provided."
INVALID_TOKEN: Final = "Invalid token."
NO_KEYS: Final = "It cannot be told yet: the keys that sign tokens were not fetched yet."
CHALLENGE: Final = {"WWW-Authenticate": 'JWT realm="api"'}
HEADER_AND_PAYLOAD: Final = "edx-jwt-cookie-header-payload"
SIGNATURE: Final = "edx-jwt-cookie-signature"
# As long as a line of a request may be; the roles in all customers of a large operator are a third of that.
MAX_TOKEN_LENGTH: Final = 64 * 1024
# Some ten thousand callers with tokens of the usual length.
MAX_CACHED_BYTES: Final = 32 * 1024 * 1024
# What a role in a customer takes in memory, beside the token's text.
CONTEXT_BYTES: Final = 256
ENTRY_BYTES: Final = 1024
MAX_VERSION: Final = 1
# Whole numbers up to it are exact as floats.
FAR_AWAY_S: Final = 2**53
RSA: Final = "RS512"
SHARED: Final = "HS256"


class _SharedSecret(HMACAlgorithm):
    """HS256 with the secret that the other services have as well, however short: that is not ours to choose."""

    def check_key_length(self, key: bytes) -> str | None:
        return None


class Tokens:
    """Tells whose the token of a request is."""

    def __init__(self, settings: AuthSettings, keyring: Keyring, clock: Clock) -> None:
        self._issuer = settings.issuer
        self._audience = settings.audience
        self._secret = settings.hs256_secret.encode()
        self._keyring = keyring
        self._clock = clock
        self._jws = PyJWS(algorithms=[RSA])
        self._jws.register_algorithm(SHARED, _SharedSecret(HMACAlgorithm.SHA256))
        self._verified: OrderedDict[str, tuple[Caller, float]] = OrderedDict()
        self._verified_bytes = 0
        self._verified_by = keyring.keys

    def caller(self, request: web.Request) -> Caller:
        """Who asks. Raises Refusal: 401, or 503 while there is no key to verify a token with."""
        token = _token(request)
        if token is None:
            raise Refusal(401, {"detail": NO_CREDENTIALS})
        known = self._held(token)
        now_s = self._clock.now_ms() / 1000
        if known is not None and now_s < known[1]:
            self._verified.move_to_end(token)
            return known[0]
        claims = self._claims(token)
        until_s = self._until_s(claims, now_s)
        caller = Caller.claimed(claims)
        self._keep(token, caller, until_s)
        return caller

    @property
    def keys(self) -> object:
        """The keys in force; what was found out with others is to be found out again."""
        return self._keyring.keys

    def known(self, authorization: str) -> tuple[Caller, float] | None:
        """Whose the token in an Authorization header is, and the second it ends; None if it was not verified yet."""
        token = _token_in(authorization.split())
        return None if token is None else self._held(token)

    def _held(self, token: str) -> tuple[Caller, float] | None:
        if self._verified_by is not self._keyring.keys:
            self._forget()
        return self._verified.get(token)

    def _claims(self, token: str) -> Mapping[str, Any]:
        """What a token that is rightly signed says."""
        if not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise _invalid()
        try:
            header = self._jws.get_unverified_header(token)
        except (PyJWTError, ValueError, RecursionError) as error:
            raise _invalid() from error
        algorithm = header.get("alg")
        candidates = self._candidates(algorithm, header.get("kid"))
        for key in candidates:
            try:
                claims = json.loads(self._jws.decode(token, key, algorithms=[str(algorithm)]))
            except (PyJWTError, ValueError, RecursionError):
                continue
            if isinstance(claims, dict):
                return claims
        if algorithm == RSA:
            # It may have been signed with a new key; most tokens do not say with which.
            self._keyring.miss()
        raise _invalid()

    def _candidates(self, algorithm: object, kid: str | None) -> Sequence[RSAPublicKey | bytes]:
        """The keys that may have signed a token, by its own word: keys of its algorithm's kind, and no others."""
        if algorithm == SHARED:
            return [self._secret] if self._secret else []
        if algorithm != RSA:
            return []
        keys = self._keyring.keys
        if keys is None:
            raise Refusal(503, {"detail": NO_KEYS})
        return keys.candidates(kid)

    def _until_s(self, claims: Mapping[str, Any], now_s: float) -> float:
        """When the token ends, if all that it must claim is so."""
        exp, nbf, aud = _number(claims.get("exp")), _number(claims.get("nbf", 0)), claims.get("aud")
        audiences = aud if isinstance(aud, list) else [aud]
        if claims.get("iss") != self._issuer or self._audience not in audiences:
            raise _invalid()
        if exp is None or nbf is None or not nbf <= now_s < exp:
            raise _invalid()
        name, version = claims.get("preferred_username"), str(claims.get("version", MAX_VERSION)).partition(".")[0]
        if not isinstance(name, str) or not name or _number(claims.get("iat")) is None:
            raise _invalid()
        if not (version.isascii() and version.isdigit() and len(version) < 4 and int(version) <= MAX_VERSION):
            raise _invalid()
        return exp

    def _keep(self, token: str, caller: Caller, until_s: float) -> None:
        if token not in self._verified:
            self._verified_bytes += _bytes(token, caller)
        self._verified[token] = caller, until_s
        self._verified.move_to_end(token)
        while self._verified_bytes > MAX_CACHED_BYTES:
            oldest, (its_caller, _) = self._verified.popitem(last=False)
            self._verified_bytes -= _bytes(oldest, its_caller)

    def _forget(self) -> None:
        self._verified.clear()
        self._verified_bytes = 0
        self._verified_by = self._keyring.keys


def _token(request: web.Request) -> str | None:
    """The text of the request's token; None if it brings none. A header goes before cookies, as in today's service."""
    header = request.headers.get("Authorization", "").split()
    if header:
        return _token_in(header)
    if request.headers.get("USE-JWT-COOKIE", "").lower() == "true":
        cookies = request.cookies
        if HEADER_AND_PAYLOAD in cookies and SIGNATURE in cookies:
            return f"{cookies[HEADER_AND_PAYLOAD]}.{cookies[SIGNATURE]}"
    return None


def _token_in(authorization: Sequence[str]) -> str | None:
    """The token in the words of an Authorization header."""
    return authorization[1] if len(authorization) == 2 and authorization[0].upper() == "JWT" else None


def _bytes(token: str, caller: Caller) -> int:
    return len(token) + ENTRY_BYTES + CONTEXT_BYTES * caller.contexts


def _number(value: object) -> float | None:
    # In Python true is a number. One that is too large for a float is no time.
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > FAR_AWAY_S:
        return None
    return float(value)


def _invalid() -> Refusal:
    return Refusal(401, {"detail": INVALID_TOKEN})
