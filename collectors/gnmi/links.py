"""Neighbours by LLDP: leaves of neighbours gathered to links, one row of inventory each time that a link is another.

There are few of them and they change seldom, so this is plain Python. A link whose neighbour went is told as one without
a peer, since of inventory the last row of a key wins.
"""

from dataclasses import dataclass, field

from .paths import LINK_LEAVES


@dataclass(slots=True)
class Links:
    """What is known of the neighbours: of each (device, port), by neighbour, its leaves; at most ``neighbours_max`` in all."""

    neighbours_max: int
    refused: int = 0
    _known: dict[tuple[int, str], dict[str, dict[str, str]]] = field(default_factory=dict)
    _count: int = 0
    _changed: dict[tuple[int, str], int] = field(default_factory=dict)

    def tell(self, device: int, port: str, neighbour: str, leaf: int, text: str, at: int) -> None:
        """Take a leaf, by its place in ``LINK_LEAVES``; ``at`` is the notification."""
        neighbours = self._known.setdefault((device, port), {})
        if neighbour not in neighbours:
            if self._count >= self.neighbours_max:
                self.refused += 1
                return
            self._count += 1
        leaves = neighbours.setdefault(neighbour, {})
        if leaves.get(LINK_LEAVES[leaf]) != text:
            leaves[LINK_LEAVES[leaf]] = text
            self._changed[device, port] = at

    def forget(self, device: int, port: str, neighbour: str, at: int) -> None:
        """Forget a neighbour, all of a port where it is empty, all of a device where both are."""
        ports = [(device, port)] if port else [key for key in self._known if key[0] == device]
        for key in ports:
            neighbours = self._known.get(key, {})
            for gone in [neighbour] if neighbour else list(neighbours):
                if neighbours.pop(gone, None) is not None:
                    self._count -= 1
                    self._changed[key] = at
            if not neighbours:
                self._known.pop(key, None)

    def take(self) -> list[tuple[int, int, str, str | None, str | None]]:
        """Return (notification, device, port, peer's device, peer's port) of the links that are others since the last call."""
        changed, self._changed = self._changed, {}
        links = []
        for (device, port), at in changed.items():
            leaves = next(reversed(self._known.get((device, port), {"": {}}).values()), {})
            peer = leaves.get("system-name") or leaves.get("chassis-id")
            links.append((at, device, port, peer, leaves.get("port-id") or leaves.get("port-description")))
        return links
