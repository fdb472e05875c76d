"""What a stranger's URL may reach: public addresses on the web's own ports, judged after the name is resolved."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from backend.contents.web.errors import UrlAway, UrlInvalid, UrlNotAllowed, UrlUnreachable

Address = IPv4Address | IPv6Address
# Name and port to all addresses; raises socket.gaierror.
Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]

LONGEST_URL = 2_048
_PORTS = {"http": 80, "https": 443}
_PRIVATE = "it is not on the public internet"
_NAME_IS_UNKNOWN = frozenset(
    code for name in ("EAI_NONAME", "EAI_NODATA") if (code := getattr(socket, name, None)) is not None
)
# Names that mean this machine or this network wherever they are resolved (RFC 6761, 6762, 8375, 9476).
_INNER_NAMES = ("localhost", "local", "internal", "home.arpa", "localdomain", "lan", "onion", "alt")
# Written out although `is_global` knows most of them: which ones depends on the Python, and what is wrong here opens
# the service's own network.
_CLOSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers; 100.100.100.200 has a cloud's credentials
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; 169.254.169.254 has a cloud's credentials
        "172.16.0.0/12",
        "192.0.0.0/24",  # 192.0.0.192 has a cloud's credentials
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "168.63.129.16/32",  # public by its number, a cloud's own inside that cloud
    )
)
# Everything outside is not handed out to anybody: unique local, link-local, site-local, multicast, documentation...
_OPEN_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20", "3ffe::/16")
)
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_ISATAP = 0x0000_5EFE
_LAST_32_BITS = 0xFFFF_FFFF


async def resolve_by_system(host: str, port: int) -> Sequence[Address]:
    """All addresses that the system's resolver knows for a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Guard:
    """The judge of URLs and addresses; `test_hosts` are host:port pairs that may lie on this machine's loopback."""

    test_hosts: frozenset[str] = frozenset()
    resolver: Resolver = field(default=resolve_by_system)

    def check(self, text: str) -> httpx.URL:
        """The URL, if all that can be known without asking a name server is well. Raises UrlInvalid, UrlNotAllowed.

        A fragment is dropped: it is not sent.
        """
        url = _parse(text)
        if url.userinfo:
            raise UrlNotAllowed(host=url.host, reason="a URL with a user name or password in it is not fetched")
        if self._is_for_tests(url):
            return url
        if url.port not in (None, *_PORTS.values()):
            raise UrlNotAllowed(host=url.host, reason="only the ports 80 and 443 are fetched")
        literal = _literal(url.host)
        if literal is not None and not is_public(literal):
            raise UrlNotAllowed(host=url.host, reason=_PRIVATE)
        if literal is None and _is_inner_name(url.host):
            raise UrlNotAllowed(host=url.host, reason=_PRIVATE)
        return url

    async def addresses(self, url: httpx.URL) -> Sequence[Address]:
        """Where to connect for a URL: all its addresses, and only if every one of them is public.

        Whoever connects must connect to one of these, not to the name. Raises UrlNotAllowed, UrlUnreachable.
        """
        url = self.check(str(url))
        literal = _literal(url.host)
        found = [literal] if literal is not None else await self._resolve(url)
        if self._is_for_tests(url):
            allowed = all(address.is_loopback for address in found)
        else:
            allowed = all(is_public(address) for address in found)
        if not allowed:
            raise UrlNotAllowed(host=url.host, reason=_PRIVATE)
        return found

    async def _resolve(self, url: httpx.URL) -> Sequence[Address]:
        try:
            found = await self.resolver(url.raw_host.decode("ascii"), port_of(url))
        except socket.gaierror as error:
            if error.errno in _NAME_IS_UNKNOWN:
                raise UrlUnreachable(host=url.host, reason="there is no host of this name") from error
            raise UrlAway(host=url.host, reason="its name could not be looked up") from error
        except (OSError, ValueError) as error:
            raise UrlUnreachable(host=url.host, reason="its name could not be looked up") from error
        if not found:
            raise UrlUnreachable(host=url.host, reason="its name has no address")
        return found

    def _is_for_tests(self, url: httpx.URL) -> bool:
        return f"{url.host}:{port_of(url)}" in self.test_hosts


def is_public(address: Address) -> bool:
    """Whether an address, and every other one that is hidden in it, belongs to the public internet."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _CLOSED_V4)
    if address.scope_id is not None:
        return False
    if (mapped := address.ipv4_mapped) is not None:
        return is_public(mapped)
    if address in _NAT64:
        return is_public(_last_32_bits(int(address)))
    if address not in _OPEN_V6 or any(address in network for network in _CLOSED_V6) or not address.is_global:
        # Teredo (2001::/32) too: it is gone, and hides two addresses.
        return False
    if address in _SIX_TO_FOUR:
        return is_public(_last_32_bits(int(address) >> 80))
    # ISATAP: the address of a machine behind a tunnel, in a prefix of anybody's (RFC 5214).
    if (int(address) >> 32) & 0xFCFF_FFFF == _ISATAP:
        return is_public(_last_32_bits(int(address)))
    return True


def port_of(url: httpx.URL) -> int:
    return url.port or _PORTS[url.scheme]


def _parse(text: str) -> httpx.URL:
    if len(text) > LONGEST_URL:
        raise UrlInvalid(reason=f"it is longer than {LONGEST_URL} characters")
    try:
        url = httpx.URL(text)
        # The name in the form in which it is sent: what cannot be written so is found out here.
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise UrlInvalid(reason="it cannot be read as an address of the web") from error
    if url.scheme not in _PORTS:
        raise UrlInvalid(reason="it does not begin with http:// or https://")
    if not host.strip("."):
        raise UrlInvalid(reason="it names no host")
    if any(sign in host for sign in "\\%@ \t/?#<>^|"):
        raise UrlInvalid(reason="its host name holds signs that no host name has")
    if url.port == 0:
        raise UrlInvalid(reason="there is no port 0")
    return url.copy_with(fragment=None)


def _literal(host: str) -> Address | None:
    """The address that a host is written as, also in the forms that the C library reads: 127.1, 0x7f000001, 0177.1."""
    try:
        return ip_address(host.strip("[]").rstrip("."))
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, UnicodeError):
        return None


def _is_inner_name(host: str) -> bool:
    """Names of this machine and of private networks, and names without a dot, which a search list would complete."""
    name = host.rstrip(".").lower()
    return "." not in name or name.endswith(tuple(f".{ending}" for ending in _INNER_NAMES))


def _last_32_bits(number: int) -> IPv4Address:
    return IPv4Address(number & _LAST_32_BITS)
