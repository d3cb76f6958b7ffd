"""The proxy of a URL, by the environment's variables: none for this machine and for private networks.

``HTTP_PROXY``, ``HTTPS_PROXY`` and ``ALL_PROXY``, in capitals or not, are for the internet. Shells have them set and
forget ``NO_PROXY``, and then a proxy is asked for ``localhost``: it answers 502, or another machine's server does. What
a client can't read in a variable is refused where the URL needs it, by the variable's name.
"""

import importlib.util
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Final, final
from urllib.parse import urlsplit
from urllib.request import getproxies

PRIVATE: Final = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *("::/127", "fc00::/7", "fe80::/10"),
)
"""Networks that no proxy leads to: loopback, private, shared (RFC 6598, as of VPNs) and link-local addresses."""
PRIVATE_NAMES: Final = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home.arpa")
"""Last parts of names that no public DNS has."""
_NETWORKS: Final = tuple(ipaddress.ip_network(one) for one in PRIVATE)
_SCHEMES: Final = ("http", "https", "socks5", "socks5h")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@final
@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that can be used.

    Attributes:
        url: with its credentials.
        variable: where it comes from.
    """

    url: str = field(repr=False)
    variable: str

    def __str__(self) -> str:
        return f"the proxy {shown(self.url)} of {self.variable}"


def proxy_of(url: str, *, socks: str = "socksio") -> Proxy | None:
    """The proxy to ask a URL through; None: none.

    Args:
        url: with scheme and host.
        socks: the package by which the client can use SOCKS.

    Raises:
        ValueError: the variable for this URL holds what no client can use.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    settings = getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if settings.get(kind, "").strip()), None)
    if kind is None or is_private(host) or _is_spared(host, parts.port, settings.get("no", "")):
        return None
    proxy = Proxy(settings[kind].strip(), _variable(kind))
    if problem := _problem(proxy.url, socks):
        raise ValueError(
            f"{proxy.variable}: given {shown(proxy.url)!r}, and {host} would be asked through it, but {problem}; write "
            f"it as http://host:port, unset it, or name {host} in NO_PROXY to ask it without a proxy"
        )
    return proxy if "://" in proxy.url else Proxy(f"http://{proxy.url}", proxy.variable)


def is_private(host: str) -> bool:
    """True if a host is this machine or in a private network, by its address or name alone: nothing is resolved."""
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    if address is not None:
        return any(address in network for network in _NETWORKS if network.version == address.version)
    return "." not in name or name.endswith(tuple(f".{last}" for last in PRIVATE_NAMES))


def spare_private_hosts(environment: MutableMapping[str, str]) -> None:
    """Name private hosts in ``NO_PROXY``, for libraries that ask by themselves: those of the hub, trackers.

    Nothing is changed where no proxy is set. ``HF_ENDPOINT`` is named too if it is private.
    """
    if not any(settings_of(environment)):
        return
    mirror = urlsplit(environment.get("HF_ENDPOINT", "")).hostname or ""
    hosts = [*PRIVATE, "127.0.0.1", "::1", *PRIVATE_NAMES, *([mirror] if mirror and is_private(mirror) else [])]
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    listed = re.split(r"[\s,]+", given)
    value = ",".join(one for one in (*listed, *(host for host in hosts if host not in listed)) if one)
    environment["no_proxy"] = environment["NO_PROXY"] = value


def unusable(environment: Mapping[str, str]) -> list[str]:
    """A line for each proxy variable that no client can use."""
    found = ((name, value, _problem(value, "socksio")) for name, value in settings_of(environment))
    return [f"{name}: given {shown(value)!r}, but {problem}" for name, value, problem in found if problem]


def settings_of(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and values of the proxy variables that are set."""
    for kind in ("http", "https", "all"):
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper()):
            if value := environment.get(name, "").strip():
                yield name, value


def shown(url: str) -> str:
    """A proxy's URL without user and password."""
    scheme, slashes, rest = url.rpartition("://")
    hidden, at, place = rest.rpartition("@")
    return f"{scheme}{slashes}{'***' if hidden else ''}{at}{place}"


def _variable(kind: str) -> str:
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    return next((name for name in names if os.environ.get(name)), "the system's proxy settings")


def _problem(url: str, socks: str) -> str:
    """Why a proxy can't be used; empty if it can."""
    text = url if "://" in url else f"http://{url}"
    if re.search(r"[\s\"']", text):
        return "it holds a quotation mark or a blank"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no address with a port"
    if parts.scheme not in _SCHEMES:
        hint = " (socks:// is written socks5:// or socks5h://)" if parts.scheme == "socks" else ""
        return f"{parts.scheme}:// is none of {', '.join(_SCHEMES)}{hint}"
    if not host:
        return "it names no host"
    if parts.scheme.startswith("socks") and importlib.util.find_spec(socks) is None:
        package = {"socks": "PySocks"}.get(socks, socks)
        return f"SOCKS needs a package that is not installed (pip install {package})"
    return ""


def _is_spared(host: str, port: int | None, no_proxy: str) -> bool:
    """True if ``NO_PROXY`` names a host: ``*``, ``example.com``, ``.example.com``, ``10.0.0.0/8``, ``host:8000``."""
    address = _address(host)
    for entry in filter(None, re.split(r"[\s,]+", no_proxy.lower())):
        name = entry.partition("://")[2] or entry
        if name == "*":
            return True
        if (network := _network(name)) is not None:
            if address is not None and address.version == network.version and address in network:
                return True
            continue
        name, _, wanted = name.partition(":") if name.count(":") == 1 else (name, "", "")
        name = name.removeprefix("*").strip(".")
        if name and (host == name or host.endswith(f".{name}")) and wanted in ("", str(port)):
            return True
    return False


def _address(host: str) -> Address | None:
    """The address that a host is written as, also in short (``127.1``) or mapped to version 6; None for names."""
    try:
        if re.fullmatch(r"[\d.]+\.[\d.]+", host):
            return ipaddress.IPv4Address(socket.inet_aton(host))
        address = ipaddress.ip_address(host.partition("%")[0])
    except (ValueError, OSError):
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return None
