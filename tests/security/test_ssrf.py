"""Nothing that a user's URL says makes the service reach its own network: addresses, names, redirects and rebinding."""

import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.contents.web import errors
from backend.contents.web.fetch import Fetcher, FetchLimits
from backend.contents.web.guard import Address, Guard, is_public
from tests.contents.web.site import NAME, PAGES, Site, answer, get, redirect, resolving, running_site

NOT_PUBLIC = """
100.100.100.200 ::ffff:100.100.100.200 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1 192.0.0.192 fec0::1
127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 169.254.170.2
100.64.0.1 100.127.255.255 192.0.0.1 192.0.0.9 192.0.0.10 192.0.0.170 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255
198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::a00:1
2002:7f00:1:: 2002:a00:1:: 2002:c0a8:101:: 2001:0:7f00:1:: 2001::1 2001:db8::1 2001:10::1 2001:20::1 3fff::1
fe80::1 fe80::1%eth0 fc00::1 fd00::1 fd00:ec2::254 fec0:ffff::1 ff02::1 ff0e::1 100::1 4000::1 5f00::1
2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:127.0.0.1
""".split()
PUBLIC = "1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 172.32.0.1 2606:4700:4700::1111 2a00:1450:4007::1 "
PUBLIC += "::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1"
CLOSED_V4 = [IPv4Network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "224.0.0.0/3")]
CLOSED_V4 += [IPv4Network(network) for network in ("192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24")]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_addresses_that_are_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC.split())
def test_addresses_that_are_public(text: str) -> None:
    assert is_public(ip_address(text))


def in_v4(address: IPv4Address) -> bool:
    """Python's own word, and the holes in it."""
    return address.is_global and not any(address in network for network in CLOSED_V4)


@settings(max_examples=2000, deadline=None)
@given(st.ip_addresses(v=4))
def test_ipv4_is_what_python_calls_global_without_its_known_holes(address: IPv4Address) -> None:
    assert is_public(address) is in_v4(address)


@settings(max_examples=2000, deadline=None)
@given(st.ip_addresses(v=6))
def test_ipv6_is_never_more_than_what_python_calls_global(address: IPv6Address) -> None:
    if is_public(address) and address.ipv4_mapped is None and address not in IPv6Network("64:ff9b::/96"):
        assert address.is_global and address in IPv6Network("2000::/3")
        assert not (address.is_private or address.is_multicast or address.is_reserved or address.is_site_local)


@settings(max_examples=1000, deadline=None)
@given(st.ip_addresses(v=4), st.integers(0, 2**80 - 1))
def test_an_ipv6_address_is_as_public_as_the_ipv4_address_within_it(inner: IPv4Address, rest: int) -> None:
    hidden = [
        IPv6Address(0xFFFF << 32 | int(inner)),
        IPv6Address((0x0064FF9B << 96) | int(inner)),
        IPv6Address((0x2002 << 112) | (int(inner) << 80) | (rest & ~(0xFFFFFFFF << 32))),
        IPv6Address((0x26064700 << 96) | (0x00005EFE << 32) | int(inner)),
    ]
    for address in hidden:
        assert is_public(address) is in_v4(inner), address
    assert not is_public(IPv6Address((0x20010000 << 96) | (int(inner) << 64) | (rest & 0xFFFFFFFFFFFFFFFF)))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://127.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::a9fe:a9fe]/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://a.localhost/",
        "http://metadata.google.internal/",
        "http://printer.local/",
        "http://intranet/",
        "http://127。0。0。1/",
        "http://example.com:22/",
        "http://example.com:6379/",
        "https://example.com:8443/",
        "http://user:secret@example.com/",
        "http://example.com@127.0.0.1/",
        "http://a\\@example.com/",
    ],
)
def test_urls_that_are_refused_without_asking_a_name_server(url: str) -> None:
    with pytest.raises(errors.UrlNotAllowed) as caught:
        Guard().check(url)
    assert (caught.value.status, caught.value.code) == (400, "URL_NOT_ALLOWED")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "data:text/html,x",
        "http://",
        "http:///path",
        "http://...",
        "http://exa mple.com/",
        "http://[::1",
        "http://0177.0.0.1/",
        "http://example.com:0/",
        "http://example.com:99999999/",
        "http://exam\nple.com/",
        "http://[fe80::1%25eth0]/",
        "http://" + "a" * 3000 + ".com/",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises((errors.UrlInvalid, errors.UrlNotAllowed)) as caught:
        Guard().check(url)
    assert caught.value.status == 400


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,30}/.{0,20}", fullmatch=True))
def test_no_text_is_an_accident(text: str) -> None:
    with suppress(errors.UrlInvalid, errors.UrlNotAllowed):
        Guard().check(text)


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["2606:4700::1111", "::1"], ["8.8.8.8", "fe80::1%eth0"]]
)
async def test_one_address_that_is_not_public_refuses_the_name(addresses: list[str], tmp_path: Path) -> None:
    fetcher = Fetcher(Guard(resolver=resolving(*addresses)), FetchLimits(total_seconds=2))
    with pytest.raises(errors.UrlNotAllowed) as caught:
        await fetcher.fetch("http://example.com/", tmp_path / "p", accepted=PAGES)
    # Who asks does not learn what a name means inside.
    assert not any(address in str(caught.value) for address in addresses)


async def test_a_test_host_may_lie_on_loopback_and_nowhere_else(tmp_path: Path) -> None:
    for address in ("10.0.0.1", "169.254.169.254", "93.184.216.34"):
        guard = Guard(frozenset({f"{NAME}:8123"}), resolving("127.0.0.1", address))
        with pytest.raises(errors.UrlNotAllowed):
            await Fetcher(guard).fetch(f"http://{NAME}:8123/", tmp_path / "p", accepted=PAGES)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]:{port}/secret",
        "http://localhost:{port}/secret",
        "http://user@page.test:{port}/secret",
        "http://page.test:1/",
        "file:///etc/passwd",
        "ftp://page.test/",
    ],
)
async def test_a_redirect_into_the_own_network_is_not_followed(tmp_path: Path, location: str) -> None:
    async with running_site() as site:
        site.pages |= {"/": redirect(location.format(port=site.port)), "/secret": answer(b"the secret")}
        with pytest.raises(errors.UrlNotAllowed):
            await get(site, "/", tmp_path)
        assert site.requests == ["/"]


class Rebinding:
    """A name server whose answers change from one question to the next."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [ip_address(address) for address in found]


async def test_what_was_checked_is_what_is_connected_to(tmp_path: Path) -> None:
    async with running_site("127.0.0.2") as checked, running_site("127.0.0.3", checked.port) as rebound:
        checked.pages["/"] = answer(b"checked")
        rebound.pages["/"] = answer(b"rebound")
        names = Rebinding(["127.0.0.2"], ["127.0.0.3"])
        assert await get(checked, "/", tmp_path, checked.fetcher(resolver=names)) == b"checked"
        assert (names.asked, rebound.requests) == (1, [])


async def test_a_name_that_turns_private_between_two_hops_is_refused(tmp_path: Path) -> None:
    async with running_site() as site:
        site.pages |= {"/": redirect("/next"), "/next": answer(b"the secret")}
        names = Rebinding(["127.0.0.1"], ["10.0.0.1"])
        with pytest.raises(errors.UrlNotAllowed):
            await get(site, "/", tmp_path, site.fetcher(resolver=names))
        assert (names.asked, site.requests) == (2, ["/"])


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server called `name`, and of a client that trusts its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.create_default_context()
    client.load_verify_locations(pem)
    return server, client


async def test_tls_is_checked_against_the_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, NAME)
    asked_for: list[Any] = []
    server.sni_callback = lambda _, name, __: asked_for.append(name)
    async with running_site(ssl_context=server) as site:
        site.pages["/"] = answer(b"secure")
        secure = f"https://{NAME}:{site.port}/"
        fetcher = site.fetcher(ssl_context=client)
        await fetcher.fetch(secure, tmp_path / "p", accepted=PAGES)
        assert (tmp_path / "p").read_bytes() == b"secure"
        assert asked_for == [NAME]
        # Nobody vouches for it, as far as a client without that certificate knows.
        with pytest.raises(errors.UrlUnreachable, match="certificate"):
            await site.fetcher().fetch(secure, tmp_path / "p", accepted=PAGES)
    other_server, other_client = certificate(tmp_path, "other.test")
    async with running_site(ssl_context=other_server) as site:
        site.pages["/"] = answer(b"secure")
        with pytest.raises(errors.UrlUnreachable, match="certificate"):
            fetcher = site.fetcher(ssl_context=other_client)
            await fetcher.fetch(f"https://{NAME}:{site.port}/", tmp_path / "p", accepted=PAGES)
        assert site.requests == []


async def test_the_setting_for_tests_is_empty_by_default(tmp_path: Path, site_of_nobody: Site) -> None:
    from backend.kit.config import Settings

    fetcher = Fetcher.of(Settings(_env_file=None))  # type: ignore[call-arg]
    assert fetcher.guard.test_hosts == frozenset()
    with pytest.raises(errors.UrlNotAllowed):
        await fetcher.fetch(f"http://127.0.0.1:{site_of_nobody.port}/", tmp_path / "p", accepted=PAGES)
    assert site_of_nobody.requests == []


@pytest.fixture
async def site_of_nobody() -> Any:
    async with running_site() as site:
        yield site
