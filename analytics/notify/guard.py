"""Decides to which addresses a notifier may connect, so that a URL cannot attack the network in which Weft runs.

Policy: webhook URLs come from the configuration file only, which the operator writes; so loopback and private ranges,
where Alertmanagers and chat servers live, are allowed. Never allowed are link-local addresses (169.254.0.0/16, fe80::/10: the
metadata services of clouds), the other known metadata addresses, multicast, broadcast and unspecified ones. ``allow``
narrows an endpoint to the given networks; it never widens. A name is resolved once per attempt, all its addresses
are checked, and the connection uses a checked address, so a name that changes meanwhile has no effect.
"""

import ipaddress
import socket
from collections.abc import Sequence

from ...pipeline.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Metadata services outside the link-local range: AWS over IPv6, Alibaba, Oracle, Azure's host channel.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def parse_networks(texts: Sequence[str], where: str) -> tuple[Network, ...]:
    """Return the networks of ``allow``. Raises ``ConfigError`` with the wrong one."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(f"{where} allow", f"{text!r} is not a network", 'write it as in "10.0.0.0/8"') from error
    return tuple(networks)


def permitted(address: Address, allow: Sequence[Network]) -> bool:
    """Return whether a webhook may go to ``address``."""
    address = _inner(address)
    if address in _METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv4Address) and address in ipaddress.ip_network("240.0.0.0/4"):
        return False
    return not allow or any(address in network for network in allow)


def resolve(host: str, port: int, allow: Sequence[Network]) -> list[str]:
    """Return the addresses of ``host`` to connect to, in order; empty when any of them is not permitted.

    One forbidden address refuses the name: names with addresses both inside and outside are used to evade such checks.
    Raises ``OSError`` when the name cannot be resolved.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    parsed = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
    return addresses if all(permitted(address, allow) for address in parsed) else []


def _inner(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, if any."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
