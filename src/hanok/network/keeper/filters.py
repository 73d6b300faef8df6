"""The packet filters of a network, as text for nft: pure functions.

Frames are judged when they enter the bridge, in the bridge family, by sets that pin each port.
What every port would get although it is for one, the questions of ARP and both sides of DHCP, goes
to that one alone: else each new guest would wake all others, which may be hundreds.
Only ether, arp, ip and udp matches are used: others (ct, reject, VLAN filtering, meta ibrname)
fail in that family on some kernels. What leaves the subnet, or is for the keeper itself, is
judged in the inet family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hanok.network.keeper.config import BRIDGE, OUT, Config, Port

# 288 bits behind a UDP header's start: the client's hardware address of BOOTP (RFC 951), which
# a guest could fake to decline or take somebody else's lease.
_CHADDR = "@th,288,48"
# Never a way out: this host and its links, documentation of IANA: RFC 6890. The pool of Hanok's
# own subnets and the host's addresses are added to it.
NEVER = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "10.87.0.0/16",
)


def base_rules(config: Config) -> str:
    """Return the rules of a network without ports; nothing passes until a port is added."""
    return f"""
table bridge hanok {{
  set macs {{ typeof iifname . ether saddr; }}
  set arps {{ typeof iifname . arp saddr ether . arp saddr ip; }}
  set addresses {{ typeof iifname . ether saddr . ip saddr; }}
  set clients {{ typeof iifname . {_CHADDR}; }}
  set asked {{ typeof oifname . arp daddr ip; }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy drop;
    iifname . ether saddr != @macs drop
    ether type arp iifname . arp saddr ether . arp saddr ip @arps accept
    ether type ip jump ip4
  }}
  chain ip4 {{
    udp sport 67 drop
    udp dport 67 iifname . {_CHADDR} != @clients drop
    iifname . ether saddr . ip saddr @addresses accept
    ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ether type arp arp operation request oifname . arp daddr ip != @asked drop
    ether type ip udp dport 67 drop
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    ether type ip udp sport 67 udp dport 68 oifname . {_CHADDR} != @clients drop
  }}
}}
table inet hanok {{
  set never {{ type ipv4_addr; flags interval; auto-merge; }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    iifname "{BRIDGE}" udp sport 68 udp dport 67 accept
    iifname "{BRIDGE}" ip daddr {config.gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname "{BRIDGE}" ip daddr {config.gateway} icmp type echo-request accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{BRIDGE}" oifname "{BRIDGE}" accept
    iifname "{BRIDGE}" ip daddr @never reject with icmp type admin-prohibited
    iifname "{BRIDGE}" oifname "{OUT}" ip saddr {config.subnet} accept
    iifname "{OUT}" oifname "{BRIDGE}" ct state established,related accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{OUT}" ip saddr {config.subnet} masquerade
  }}
}}
{never_rules(())}"""


def change_rules(gone: Iterable[Port], new: Iterable[Port]) -> str:
    """Return the rules that unpin the ports ``gone`` and pin ``new``, in one transaction.

    Both may be repeated: what is deleted is added first, which does nothing when it is there,
    because deleting what is not there would be an error.
    """
    removed = _elements(gone)
    return (
        _each_set("add", removed) + _each_set("delete", removed) + _each_set("add", _elements(new))
    )


def _each_set(verb: str, elements: Mapping[str, list[str]]) -> str:
    return "".join(
        f"{verb} element bridge hanok {name} {{ {', '.join(found)} }}\n"
        for name, found in elements.items()
        if found
    )


def _elements(ports: Iterable[Port]) -> dict[str, list[str]]:
    """Return what pins ``ports``, by the names of the sets."""
    found: dict[str, list[str]] = {
        "macs": [],
        "arps": [],
        "addresses": [],
        "clients": [],
        "asked": [],
    }
    for port in ports:
        found["macs"].append(f'"{port.tap}" . {port.mac}')
        found["arps"].append(f'"{port.tap}" . {port.mac} . {port.address}')
        found["addresses"].append(f'"{port.tap}" . {port.mac} . {port.address}')
        found["clients"].append(f'"{port.tap}" . 0x{port.mac.replace(":", "")}')
        found["asked"].append(f'"{port.tap}" . {port.address}')
    return found


def never_rules(networks: Iterable[str]) -> str:
    """Return the rules that make the forbidden destinations NEVER and ``networks``."""
    elements = ", ".join([*NEVER, *networks])
    return f"flush set inet hanok never\nadd element inet hanok never {{ {elements} }}\n"
