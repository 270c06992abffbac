"""LLDP neighbours: joins their leaves to links, with one inventory row whenever a link changes.

Links are few and change rarely, so this is plain Python. A link whose neighbour is gone becomes a row without a peer, because the last
inventory row of a key is valid.
"""

from dataclasses import dataclass, field

from .paths import LINK_LEAVES


@dataclass(slots=True)
class Links:
    """Leaves of each neighbour of each (device, port); at most ``neighbours_max`` neighbours."""

    neighbours_max: int
    refused: int = 0
    _known: dict[tuple[int, str], dict[str, dict[str, str]]] = field(default_factory=dict)
    _count: int = 0
    _changed: dict[tuple[int, str], int] = field(default_factory=dict)

    def update(self, device: int, port: str, neighbour: str, leaf: int, text: str, at: int) -> None:
        """Set a leaf, given by its index in ``LINK_LEAVES``; ``at`` is the index of the notification."""
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
        """Remove a neighbour; with an empty name all of the port, with an empty port all of the device."""
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
        """Return (notification, device, port, peer's device, peer's port) of the links that changed since the last call."""
        changed, self._changed = self._changed, {}
        links = []
        for (device, port), at in changed.items():
            leaves = next(reversed(self._known.get((device, port), {"": {}}).values()), {})
            peer = leaves.get("system-name") or leaves.get("chassis-id")
            links.append((at, device, port, peer, leaves.get("port-id") or leaves.get("port-description")))
        return links
