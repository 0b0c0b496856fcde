"""What a redis url says, what it must not say, and that a refusal shows no password."""

import pytest

from sidecar.errors import StoreError
from sidecar.store.address import Address, parse


@pytest.mark.parametrize(
    "url, expected",
    [
        ("redis://store", Address("redis", (("store", 6379),))),
        ("redis://store/", Address("redis", (("store", 6379),))),
        ("redis://10.0.0.1:7000/3", Address("redis", (("10.0.0.1", 7000),), database=3)),
        ("redis://[::1]:7000", Address("redis", (("::1", 7000),))),
        ("redis://[::1]", Address("redis", (("::1", 6379),))),
        ("redis://:word@store", Address("redis", (("store", 6379),), password="word")),
        ("redis://me:w%40r%3Ad@store", Address("redis", (("store", 6379),), username="me", password="w@r:d")),
        ("redis://me:w:o@rd@store", Address("redis", (("store", 6379),), username="me", password="w:o@rd")),
        ("rediss://store", Address("rediss", (("store", 6379),), tls=True)),
        ("rediss://store?ca_file=/etc/ca.pem", Address("rediss", (("store", 6379),), tls=True, ca_file="/etc/ca.pem")),
        (
            "redis+sentinel://a,b:26380/catalog",
            Address("redis+sentinel", (("a", 26379), ("b", 26380)), service="catalog"),
        ),
        (
            "redis+sentinel://me:word@a/catalog/2?sentinel_username=you&sentinel_password=o%26ther&tls=true",
            Address("redis+sentinel", (("a", 26379),), "catalog", 2, "me", "word", "you", "o&ther", True),
        ),
        ("redis+cluster://a,b:7000,[::1]:7001", Address("redis+cluster", (("a", 6379), ("b", 7000), ("::1", 7001)))),
        (
            "redis+cluster://:word@a?tls=true&ca_file=/etc/ca.pem",
            Address("redis+cluster", (("a", 6379),), password="word", tls=True, ca_file="/etc/ca.pem"),
        ),
    ],
)
def test_what_a_url_says(url: str, expected: Address) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url, reason",
    [
        ("redis://", "HOST"),
        ("redis://:secret@", "HOST"),
        ("redis://:secret@a,b", "HOST"),
        ("redis://:secret@a:0", "HOST"),
        ("redis://:secret@a:65536", "HOST"),
        ("redis://:secret@a:port", "HOST"),
        ("redis://:secret@[::1", "percent-encoded"),
        ("redis://:sec#ret@a", "#"),
        ("redis://:sec/ret@a", "number"),
        ("redis://secret@a", "no password"),
        ("redis://:secret@a/catalog", "number"),
        ("redis://:secret@a/-1", "number"),
        ("redis://:secret@a/1/2", "number"),
        ("redis://:secret@a?db=1", "'db'; known are: none"),
        ("rediss://:secret@a?ssl_cert_reqs=none", "'ssl_cert_reqs'; known are: ca_file"),
        ("rediss://:secret@a?ca_file=", "'ca_file'"),
        ("rediss://:secret@a?ca_file=/a&ca_file=/b", "'ca_file'"),
        ("redis+sentinel://:secret@a", "SERVICE"),
        ("redis+sentinel://:secret@a/", "SERVICE"),
        ("redis+sentinel://:secret@a,/catalog", "HOST"),
        ("redis+sentinel://:secret@a/catalog/x", "number"),
        ("redis+sentinel://a/catalog?sentinel_username=secret", "sentinel_password"),
        ("redis+sentinel://a/catalog?password=secret", "'password'"),
        ("redis+cluster://:secret@a/0", "no databases"),
        ("redis+cluster://:secret@a?tls=secret", "'tls'"),
        ("redis+cluster://:secret@a?ca_file=/secret", "tls=true"),
        ("redis+unix:///secret", "redis+unix"),
    ],
)
def test_what_is_wrong_is_refused_by_name_and_no_password_is_shown(url: str, reason: str) -> None:
    with pytest.raises(StoreError) as caught:
        parse(url)
    message = str(caught.value)
    assert message.startswith("store.url redis")
    assert reason in message
    assert "sec" not in message


@pytest.mark.parametrize(
    "url, text",
    [
        ("redis://me:secret@store/3", "redis://store:6379/3"),
        ("rediss://:secret@[::1]", "rediss://[::1]:6379"),
        (
            "redis+sentinel://:secret@a,b/catalog/2?sentinel_password=secret",
            "redis+sentinel://a:26379,b:26379/catalog/2",
        ),
        ("redis+cluster://:secret@a,b", "redis+cluster://a:6379,b:6379"),
    ],
)
def test_an_address_as_messages_show_it_has_no_password(url: str, text: str) -> None:
    address = parse(url)
    assert str(address) == text
    assert "secret" not in repr(address)
