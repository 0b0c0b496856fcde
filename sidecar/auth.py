"""Whether a token is good, and whose it is. Pure but for the clock that is passed in; keys come from `sidecar.keys`.

1. A request brings `Authorization: JWT <token>`, or, if it says USE-JWT-COOKIE: true, the two cookies that browsers
   keep a token in. Anything else, `Bearer` too, is no credentials.
2. The token's algorithm says which kind of key may verify it, and no key serves two: RS512 a public key of the JWK set,
   HS256 the shared secret, where one is set. There is no third.
3. It must name the issuer and the audience, and an `exp` that is still to come: there is no leeway, because tokens live
   for an hour and are renewed before. An `nbf` is held to; `iat` is not, so that clocks may differ a little.
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
MAX_CACHED_LENGTH: Final = 16 * 1024 * 1024
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
        self._verified_length = 0
        self._verified_by = keyring.keys

    def caller(self, request: web.Request) -> Caller:
        """Who asks. Raises Refusal: 401, or 503 while there is no key to verify a token with."""
        token = _token(request)
        if token is None:
            raise Refusal(401, {"detail": NO_CREDENTIALS})
        if self._verified_by is not self._keyring.keys:
            self._forget()
        known = self._verified.get(token)
        now_s = self._clock.now_ms() / 1000
        if known is not None and now_s < known[1]:
            self._verified.move_to_end(token)
            return known[0]
        claims = self._claims(token)
        caller, until_s = Caller.claimed(claims), self._until_s(claims, now_s)
        self._keep(token, caller, until_s)
        return caller

    def _claims(self, token: str) -> Mapping[str, Any]:
        """What a token that is rightly signed says."""
        if not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise _invalid()
        try:
            header = self._jws.get_unverified_header(token)
        except (PyJWTError, ValueError, RecursionError) as error:
            raise _invalid() from error
        algorithm = header.get("alg")
        for key in self._candidates(algorithm, header.get("kid")):
            try:
                claims = json.loads(self._jws.decode(token, key, algorithms=[str(algorithm)]))
            except (PyJWTError, ValueError, RecursionError):
                continue
            if isinstance(claims, dict):
                return claims
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
        found = keys.candidates(kid)
        if not found:
            self._keyring.miss()
        return found

    def _until_s(self, claims: Mapping[str, Any], now_s: float) -> float:
        """When the token ends, if all that it must claim is so."""
        exp, nbf, aud = _number(claims.get("exp")), _number(claims.get("nbf", 0)), claims.get("aud")
        audiences = aud if isinstance(aud, list) else [aud]
        if claims.get("iss") != self._issuer or self._audience not in audiences:
            raise _invalid()
        if exp is None or nbf is None or not nbf <= now_s < exp:
            raise _invalid()
        return exp

    def _keep(self, token: str, caller: Caller, until_s: float) -> None:
        if token not in self._verified:
            self._verified_length += len(token)
        self._verified[token] = caller, until_s
        self._verified.move_to_end(token)
        while self._verified_length > MAX_CACHED_LENGTH:
            oldest, _ = self._verified.popitem(last=False)
            self._verified_length -= len(oldest)

    def _forget(self) -> None:
        self._verified.clear()
        self._verified_length = 0
        self._verified_by = self._keyring.keys


def _token(request: web.Request) -> str | None:
    """The text of the request's token; None if it brings none. Cookies win where they are asked for, as in the LMS."""
    if request.headers.get("USE-JWT-COOKIE", "").lower() == "true":
        cookies = request.cookies
        if HEADER_AND_PAYLOAD in cookies and SIGNATURE in cookies:
            return f"{cookies[HEADER_AND_PAYLOAD]}.{cookies[SIGNATURE]}"
    scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
    return token.strip() if scheme.upper() == "JWT" else None


def _number(value: object) -> float | None:
    # In Python true is a number. One that is too large for a float is no time.
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > FAR_AWAY_S:
        return None
    return float(value)


def _invalid() -> Refusal:
    return Refusal(401, {"detail": INVALID_TOKEN})
