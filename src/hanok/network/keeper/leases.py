"""Which card gets which address: the static leases, as dnsmasq reads them.

dnsmasq keeps an address for the card that once had it, for ever: a guest that is ended does not
give its lease back. An entry may name several cards, though; then the one that asks takes the
lease over from the others ("--dhcp-host" in dnsmasq(8)). So each entry also names the cards that
had the address before.
"""

from __future__ import annotations

from collections.abc import Iterable

from hanok.network.keeper.config import Port

_MOST_CARDS = 16  # of one address; dnsmasq reads lines of up to 1024 characters


class Leases:
    """The cards that dnsmasq may remember."""

    def __init__(self) -> None:
        self._cards: dict[str, list[str]] = {}  # by address, the present one last

    def offer(self, ports: Iterable[Port]) -> bool:
        """Note that exactly ``ports`` are served from now on.

        Returns whether dnsmasq can do so with its memory, else it has to be started afresh:
        an address has had too many cards, or one of them has another address now.
        """
        present = {port.mac: port.address for port in ports}
        for mac, address in present.items():
            cards = self._cards.setdefault(address, [])
            if mac in cards:
                cards.remove(mac)
            cards.append(mac)
        fits = all(
            len(self._cards[address]) <= _MOST_CARDS
            and all(present.get(card, address) == address for card in self._cards[address])
            for address in present.values()
        )
        if not fits:
            self._cards = {address: [mac] for mac, address in present.items()}
        return fits

    def text(self, ports: Iterable[Port]) -> str:
        """Return the entries for ``ports``, which were offered."""
        return "".join(
            f"{','.join(reversed(self._cards[port.address]))},"
            f"{port.address},{port.host_name},infinite\n"
            for port in ports
        )
