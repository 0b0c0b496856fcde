"""Which tokens are good: over the verifier itself, with requests that only have headers."""

import asyncio
import base64
import hashlib
import hmac
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from sidecar import auth
from sidecar.auth import INVALID_TOKEN, NO_CREDENTIALS, Tokens
from sidecar.keys import Keyring, KeysUnusable, fetch, open_keyring, parse
from sidecar.parameters import Refusal
from sidecar.roles import Access, Caller
from sidecar.settings import AuthSettings
from tests.tokens import (
    AUDIENCE,
    ISSUER,
    SECRET,
    StillClock,
    claims_of,
    jwk,
    jwks,
    keyring,
    private_key,
    settings,
    shared,
    signed,
    token_of,
)

NOW_S: Final = 1_800_000_000
CLAIMS: Final[dict[str, Any]] = claims_of("operator")
SETTINGS: Final = AuthSettings(mode="jwt", issuer=ISSUER, audience=AUDIENCE, hs256_secret=SECRET)
C0: Final = "ee9034df-3024-49bb-a365-58f527b83ab6"


def verifier(*keys: dict[str, Any], secret: str = SECRET) -> Tokens:
    clock = StillClock()
    trusting = AuthSettings(mode="jwt", issuer=ISSUER, audience=AUDIENCE, hs256_secret=secret)
    return Tokens(trusting, keyring(*(keys or (jwk(),)), clock=clock), clock)


def asked(tokens: Tokens, headers: dict[str, str]) -> Caller:
    request = make_mocked_request(
        "GET", "/", headers={k: v.encode(errors="replace").decode() for k, v in headers.items()}
    )
    # As aiohttp gives what is not UTF-8: its stand-in for requests refuses it.
    request._headers = CIMultiDictProxy(CIMultiDict(headers))
    return tokens.caller(request)


def given_token(tokens: Tokens, token: str) -> Caller:
    return asked(tokens, {"Authorization": f"JWT {token}"})


def refusal(tokens: Tokens, headers: dict[str, str]) -> tuple[int, object]:
    with pytest.raises(Refusal) as caught:
        asked(tokens, headers)
    return caught.value.status, caught.value.body


def is_invalid(tokens: Tokens, token: str) -> bool:
    return refusal(tokens, {"Authorization": f"JWT {token}"}) == (401, {"detail": INVALID_TOKEN})


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


class TestATokenThatIsGood:
    def test_says_who_asks(self) -> None:
        caller = given_token(verifier(), signed(CLAIMS))
        assert (caller.name, caller.may(Access.ADMIN, C0)) == ("operator", True)

    def test_may_be_signed_with_the_shared_secret(self) -> None:
        assert given_token(verifier(), token_of("hs256_symmetric", 0)).name == "hs256"

    def test_may_name_no_key_as_those_of_the_lms(self) -> None:
        assert given_token(verifier(jwk("other"), jwk()), signed(CLAIMS, kid=None)).name == "operator"

    def test_may_be_for_several_audiences(self) -> None:
        assert given_token(verifier(), signed(CLAIMS | {"aud": ["x", AUDIENCE]})).name == "operator"

    @pytest.mark.parametrize("scheme", ["JWT", "jwt", "JWT "])
    def test_comes_in_the_authorization_header(self, scheme: str) -> None:
        assert asked(verifier(), {"Authorization": f"{scheme} {signed(CLAIMS)}"}).name == "operator"

    def test_comes_in_cookies_where_the_header_asks_for_them(self) -> None:
        head, payload, signature = signed(CLAIMS).split(".")
        cookie = f"a=b; edx-jwt-cookie-header-payload={head}.{payload}; edx-jwt-cookie-signature={signature}"
        tokens = verifier()
        assert asked(tokens, {"Cookie": cookie, "USE-JWT-COOKIE": "true"}).name == "operator"
        both = {"Cookie": cookie, "USE-JWT-COOKIE": "true"}
        assert refusal(tokens, both | {"Authorization": "Bearer x"})[1] == {"detail": NO_CREDENTIALS}
        assert refusal(tokens, both | {"Authorization": "JWT x"})[1] == {"detail": INVALID_TOKEN}
        assert asked(tokens, both | {"Authorization": ""}).name == "operator"
        assert refusal(tokens, {"Cookie": cookie}) == (401, {"detail": NO_CREDENTIALS})
        assert refusal(tokens, {"Cookie": cookie, "USE-JWT-COOKIE": "false"})[1] == {"detail": NO_CREDENTIALS}
        half = cookie.partition("; edx-jwt-cookie-signature")[0]
        assert refusal(tokens, {"Cookie": half, "USE-JWT-COOKIE": "true"})[1] == {"detail": NO_CREDENTIALS}
        bad = cookie[:-4] + "AAAA"
        assert refusal(tokens, {"Cookie": bad, "USE-JWT-COOKIE": "true"})[1] == {"detail": INVALID_TOKEN}


@pytest.mark.parametrize("value", ["", "Bearer x", "Basic eDp5", "Token x", "JWTx", "JWT", "JWT ", "JWT a b"])
def test_other_credentials_are_none(value: str) -> None:
    assert refusal(verifier(), {"Authorization": value}) == (401, {"detail": NO_CREDENTIALS})
    assert refusal(verifier(), {"Authorization": f"Bearer {signed(CLAIMS)}"}) == (401, {"detail": NO_CREDENTIALS})


@pytest.mark.parametrize(
    "claims",
    [
        *(without(name) for name in ("exp", "iss", "aud", "iat", "preferred_username")),
        *(CLAIMS | {"iat": iat} for iat in ("1", None, True)),
        *(CLAIMS | {"preferred_username": called} for called in ("", None, 203, list[str]())),
        *(CLAIMS | {"version": version} for version in ("2.0.0", "", "x", None, -1, "1" * 5000)),
        *(CLAIMS | {"exp": exp} for exp in (NOW_S, NOW_S - 1, "2110694994", None, True, [1], -1, 1e300, 10**400)),
        *(CLAIMS | {"nbf": nbf} for nbf in (NOW_S + 1, "0", None)),
        *(CLAIMS | {"aud": aud} for aud in ("other", "", None, [], ["other"], {"lms-key": 1}, "lms-key,other", 1)),
        *(CLAIMS | {"iss": iss} for iss in ("other", ISSUER + "/", "", None, [ISSUER])),
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("sign", [signed, shared])
def test_a_token_must_claim_what_is_so(claims: dict[str, Any], sign: Any) -> None:
    assert is_invalid(verifier(), sign(claims))


class TestASignatureThatIsWrong:
    def test_is_refused_whoever_made_it(self) -> None:
        tokens = verifier(jwk(), jwk("other"))
        assert is_invalid(tokens, signed(CLAIMS, "third"))
        assert is_invalid(tokens, signed(CLAIMS, "other", kid="test"))
        assert is_invalid(tokens, signed(CLAIMS, "third", kid=None))
        assert is_invalid(tokens, shared(CLAIMS, "some-other-secret-some-other-secret"))

    def test_is_refused_of_another_payload(self) -> None:
        head, _, signature = signed(CLAIMS).split(".")
        assert is_invalid(verifier(), f"{head}.{part(CLAIMS | {'superuser': True})}.{signature}")

    @pytest.mark.parametrize(
        "alg", ["none", "None", "NONE", "", None, 1, ["RS512"], "RS256", "ES512", "PS512", "HS512"]
    )
    def test_is_refused_of_an_algorithm_that_is_not_taken(self, alg: object) -> None:
        signature = signed(CLAIMS).rpartition(".")[2]
        for end in ("", signature):
            assert is_invalid(verifier(), f"{part({'alg': alg, 'typ': 'JWT'})}.{part(CLAIMS)}.{end}")

    def test_is_refused_of_another_hash_of_the_same_key(self) -> None:
        assert is_invalid(verifier(), signed(CLAIMS, algorithm="RS256"))

    def test_of_the_public_key_as_a_secret_is_refused(self) -> None:
        public = private_key("test").public_key()
        for form in (serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1):
            for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
                key = public.public_bytes(encoding, form)
                # PyJWT refuses to sign with it, so this is made by hand.
                body = f"{part({'alg': 'HS256', 'kid': 'test'})}.{part(CLAIMS)}"
                mac = hmac.new(key, body.encode(), hashlib.sha256).digest()
                token = f"{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
                assert is_invalid(verifier(), token)
                assert is_invalid(verifier(secret=""), token)

    def test_of_no_secret_is_refused_where_none_is_set(self) -> None:
        body = f"{part({'alg': 'HS256'})}.{part(CLAIMS)}"
        mac = hmac.new(b"", body.encode(), hashlib.sha256).digest()
        token = f"{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert is_invalid(verifier(secret=""), token)
        assert is_invalid(verifier(secret=""), shared(CLAIMS))


class TestATokenThatIsNone:
    @pytest.mark.parametrize("token", [".", "..", "...", "a.b.c", "é.é.é", "\udc80", "null", "e30.e30.", "x" * 70_000])
    def test_is_refused(self, token: str) -> None:
        assert is_invalid(verifier(), token)

    def test_is_refused_wherever_it_was_cut(self) -> None:
        tokens, token = verifier(), signed(CLAIMS)
        assert all(is_invalid(tokens, token[:length]) for length in range(1, len(token), 7))

    def test_is_refused_when_enormous_even_if_rightly_signed(self) -> None:
        tokens = verifier()
        assert given_token(tokens, signed(CLAIMS | {"x": "x" * 40_000})).name == "operator"
        assert is_invalid(tokens, signed(CLAIMS | {"x": "x" * 60_000}))

    def test_is_refused_when_it_is_nested_deeply(self) -> None:
        deep = base64.urlsafe_b64encode(b"[" * 30_000).rstrip(b"=").decode()
        assert is_invalid(verifier(), f"{deep}.{part(CLAIMS)}.AAAA")

    @given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode(errors="surrogateescape")))
    def test_is_never_a_defect(self, token: str) -> None:
        token = token.replace("\r", "").replace("\n", "")
        status, body = refusal(verifier(), {"Authorization": f"JWT {token}"})
        wrong = INVALID_TOKEN if len(token.split()) == 1 else NO_CREDENTIALS
        assert (status, body) == (401, {"detail": wrong})

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
        )
    )
    def test_may_have_any_header(self, header: object) -> None:
        assert is_invalid(verifier(), f"{part(header)}.{part(CLAIMS)}.AAAA")

    @given(
        st.dictionaries(
            st.sampled_from(["alg", "kid", "crit", "b64", "typ", "jwk", "jku", "x5c"]),
            st.sampled_from(["RS512", "HS256", "none", "test", None, True, 0, ["b64"], {}, "https://x"]),
        )
    )
    def test_may_have_any_parameters(self, header: dict[str, object]) -> None:
        assert is_invalid(verifier(), f"{part(header)}.{part(CLAIMS)}.AAAA")

    @given(
        st.dictionaries(
            st.sampled_from(["exp", "iss", "aud", "nbf", "roles", "preferred_username", "superuser"]),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers()),
        )
    )
    def test_may_claim_anything(self, claims: dict[str, object]) -> None:
        tokens, token = verifier(), shared(CLAIMS | claims)
        with suppress(Refusal):
            assert isinstance(given_token(tokens, token), Caller)
            return
        assert is_invalid(tokens, token)


class TestWhatIsKept:
    def setup_method(self) -> None:
        self.clock = StillClock(NOW_S * 1000)
        self.keyring = keyring(jwk(), clock=self.clock)
        self.tokens = Tokens(SETTINGS, self.keyring, self.clock)

    def test_is_the_same_caller(self) -> None:
        token = signed(CLAIMS)
        assert given_token(self.tokens, token) is given_token(self.tokens, token)

    def test_ends_with_the_token(self) -> None:
        token = signed(CLAIMS | {"exp": NOW_S + 10})
        assert given_token(self.tokens, token).name == "operator"
        self.clock.advance(9.999)
        assert given_token(self.tokens, token).name == "operator"
        self.clock.advance(0.001)
        assert is_invalid(self.tokens, token)

    def test_is_dropped_when_the_keys_change(self) -> None:
        token = signed(CLAIMS)
        assert given_token(self.tokens, token).name == "operator"
        self.keyring.keys = parse(jwks(jwk("other")))
        assert is_invalid(self.tokens, token)
        assert given_token(self.tokens, signed(CLAIMS, "other", kid="other")).name == "operator"

    def test_is_bounded_and_what_was_used_last_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second, third = (signed(CLAIMS | {"user_id": n}) for n in range(3))
        roles = auth.CONTEXT_BYTES * given_token(self.tokens, first).contexts
        monkeypatch.setattr(auth, "MAX_CACHED_BYTES", len(first) + len(second) + 2 * (auth.ENTRY_BYTES + roles))
        kept = given_token(self.tokens, first)
        dropped = given_token(self.tokens, second)
        given_token(self.tokens, first)
        given_token(self.tokens, third)
        assert given_token(self.tokens, first) is kept
        assert given_token(self.tokens, second) is not dropped

    def test_counts_the_roles_of_a_caller(self) -> None:
        """They take more memory than they have letters."""
        few, many = CLAIMS | {"roles": []}, CLAIMS | {"roles": [f"enterprise_admin:{n}" for n in range(1000)]}
        for n in range(100):
            given_token(self.tokens, shared(few | {"n": n}))
        assert len(self.tokens._verified) == 100
        for n in range(100):
            given_token(self.tokens, shared(many | {"n": n}))
        assert len(self.tokens._verified) < 50
        assert self.tokens._verified_bytes <= auth.MAX_CACHED_BYTES

    def test_is_no_token_that_was_refused(self) -> None:
        for n in range(10):
            assert is_invalid(self.tokens, f"{n}.{n}.{n}")
        assert not self.tokens._verified


class TestKeys:
    async def test_are_read_again_when_their_file_changes(self, tmp_path: Path) -> None:
        ticks: asyncio.Queue[None] = asyncio.Queue()
        trusting = settings(tmp_path)
        write = Path(trusting.jwks_file).write_bytes

        class Ticking(StillClock):
            async def sleep(self, seconds: float) -> None:
                await ticks.get()

        clock = Ticking()
        held = open_keyring(trusting, clock)
        tokens = Tokens(trusting, held, clock)
        token = signed(CLAIMS)
        assert given_token(tokens, token).name == "operator"
        running = asyncio.create_task(held.run())
        first = held.keys

        async def until(changed: bool) -> None:
            for _ in range(2000):
                ticks.put_nowait(None)
                await asyncio.sleep(0.001)
                if (held.keys is not first) is changed and (changed or held.problem):
                    return
            raise AssertionError("the file was not read again")

        write(b"{")
        await until(False)
        assert given_token(tokens, token).name == "operator"
        write(jwks(jwk("other")))
        await until(True)
        assert is_invalid(tokens, token)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def test_are_fetched_in_the_background_and_again_for_an_unknown_one(self) -> None:
        sets: list[bytes | KeysUnusable] = [jwks(jwk()), KeysUnusable("HTTP 502"), jwks(jwk(), jwk("other"))]
        asleep: asyncio.Queue[tuple[float, asyncio.Future[None]]] = asyncio.Queue()

        class Stepped(StillClock):
            async def sleep(self, seconds: float) -> None:
                woken = asyncio.get_running_loop().create_future()
                asleep.put_nowait((seconds, woken))
                await woken

        async def read() -> bytes:
            given = sets.pop(0)
            if isinstance(given, KeysUnusable):
                raise given
            return given

        clock = Stepped()
        held = Keyring(None, clock, read, every_s=300, pause_s=60)
        tokens = Tokens(SETTINGS, held, clock)
        assert refusal(tokens, {"Authorization": f"JWT {signed(CLAIMS)}"})[0] == 503
        assert given_token(tokens, shared(CLAIMS)).name == "operator"
        running = asyncio.create_task(held.run())
        new = signed(CLAIMS, "other", kid="other")
        for left in (2, 1):
            seconds, pause = await asleep.get()
            assert (seconds, len(sets)) == (60, left)
            assert given_token(tokens, signed(CLAIMS)).name == "operator"
            assert is_invalid(tokens, new)  # which asks for the set, once the pause is over
            pause.set_result(None)
            await asleep.get()
        assert (await asleep.get())[0] == 60
        assert given_token(tokens, new).name == "operator"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def test_come_from_a_url(self) -> None:
        async def serve(request: web.Request) -> web.Response:
            return web.Response(status=200 if request.path == "/good" else 500, body=jwks(jwk()))

        app = web.Application()
        app.add_routes([web.get("/good", serve), web.get("/bad", serve)])
        async with TestClient(TestServer(app)) as client:
            assert parse(await fetch(str(client.make_url("/good")))).named.keys() == {"test"}
            with pytest.raises(KeysUnusable, match="HTTP 500"):
                await fetch(str(client.make_url("/bad")))

    @pytest.mark.parametrize(
        "entry",
        [
            jwk(kty="oct", k="AAAA"),
            jwk(use="enc"),
            jwk(alg="RS256"),
            jwk(n="AQAB"),
            jwk(n=None),
            jwk(e=1),
            jwk(n="é"),
            {"kty": "oct", "k": "AAAA", "kid": "test"},
            {"kty": "EC"},
            {},
            None,
            "x",
        ],
    )
    def test_of_another_kind_are_not_taken(self, entry: Any) -> None:
        with pytest.raises(KeysUnusable, match="no public RSA key"):
            parse(jwks(entry))
        assert parse(jwks(entry, jwk("other"))).named.keys() == {"other"}

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b"\xff", b"[" * 100_000])
    def test_that_are_no_set_are_refused(self, text: bytes) -> None:
        with pytest.raises(KeysUnusable):
            parse(text)

    def test_without_an_id_may_have_signed_anything(self) -> None:
        assert given_token(verifier(jwk(kid=None)), signed(CLAIMS, kid="unheard of")).name == "operator"


class TestRoles:
    def test_are_for_their_context_alone(self) -> None:
        caller = Caller("a", [f"enterprise_learner:{C0}", "enterprise_admin:other"])
        assert caller.may(Access.LEARNER, C0)
        assert not caller.may(Access.LEARNER, C0.upper())
        assert not caller.may(Access.ADMIN, C0)
        assert caller.may(Access.ADMIN, "other")
        assert not caller.may(Access.LEARNER, None)
        assert caller.customers(Access.ADMIN) == frozenset({"other"})

    @pytest.mark.parametrize(
        "roles",
        [
            None, 1, "enterprise_admin:*", {"enterprise_admin:*": 1}, ["enterprise_admin"], ["enterprise_admin:"],
            [["enterprise_admin", "*"]], [":*"], ["enterprise_admin :*"], ["Enterprise_admin:*"], [None], ["*:*"],
        ],
        ids=str,
    )  # fmt: skip
    def test_of_another_form_give_nothing(self, roles: object) -> None:
        caller = Caller.claimed({"preferred_username": "a", "roles": roles})
        assert not any(caller.may(access, C0) for access in Access if access is not Access.AUTHENTICATED)

    @pytest.mark.parametrize("value", [1, "true", "True", [True], None])
    def test_staff_and_superuser_are_said_with_true_alone(self, value: object) -> None:
        caller = Caller.claimed({"preferred_username": "a", "superuser": value, "administrator": value})
        assert not caller.may(Access.STAFF)
        assert not caller.may(Access.SUPERUSER)

    def test_a_caller_is_called_as_the_token_says(self) -> None:
        assert Caller.claimed({"preferred_username": "a", "user_id": 1}).name == "a"

    def test_in_a_context_that_cannot_be_written_are_none(self) -> None:
        caller = Caller("a", ["enterprise_admin:\ud800", "enterprise_admin:a\0", f"enterprise_admin:{C0}"])
        assert caller.customers(Access.ADMIN) == frozenset({C0})
