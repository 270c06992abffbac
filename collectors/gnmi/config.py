"""Settings of the gNMI collector, its packs (paths to subscribe to by kind of device, in ``packs/``), and its entry in ``COLLECTORS``.

Protocol and decoder are imported when the collector runs.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from ...pipeline.dictionary import WIDE
from ...pipeline.errors import ConfigError, ServiceError
from ..base import Collector, lazy

if TYPE_CHECKING:
    from gnmi_pb import gnmi_pb2

PACKS = File(__file__).with_name("packs")
ENCODINGS = ("PROTO", "JSON_IETF", "JSON")

_WHERE = "collect.gnmi"
MODES = ("target_defined", "on_change", "sample")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\s]+):(\d{1,5})")
_STEP = re.compile(r"/([^/\[\]]+)((?:\[[^\[\]=]+=(?:[^\]\\]|\\.)*\])*)")
_KEY = re.compile(r"\[([^\[\]=]+)=((?:[^\]\\]|\\.)*)\]")
_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """One device: ``[[collect.gnmi.targets]]``. Empty settings are taken from ``[collect.gnmi]``."""

    # Name under which its rows are published; empty = the address.
    name: str = ""
    # Host and port, as `leaf1:9339`.
    address: str = ""
    # Names of packs; empty = those of the section.
    packs: tuple[str, ...] = ()
    username: str = ""
    # Source of the password: a file, or the name of an environment variable.
    password_file: str = ""
    password_env: str = ""
    # `true`: no TLS; everything, the password too, is sent in clear text.
    insecure: bool | None = None
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    # Name in its certificate, where that is not the address.
    server_name: str = ""
    # Whether it reports for many devices and names each as the target of a message.
    gateway: bool = False


@dataclass(frozen=True)
class GnmiConfig:
    """Section ``[collect.gnmi]``: devices to connect to; off without ``targets``."""

    enabled: bool = True
    targets: tuple[Target, ...] = ()
    packs: tuple[str, ...] = ("openconfig", "lldp")
    # Interval of sampled paths instead of the pack's own; 0 = the pack's.
    interval_ms: int = 0
    username: str = ""
    password_file: str = ""
    password_env: str = ""
    insecure: bool = False
    # Certificate authorities of the devices' certificates; empty = those of the system.
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    # A stream without data or keepalive answers for this long counts as down.
    keepalive_s: float = 30.0
    # How often certificate files are checked while a stream is up; the device is connected again when one has changed.
    certificates_s: float = 30.0
    # Seconds before the second attempt to reach a device, and at most before any further one.
    backoff_s: float = 1.0
    backoff_s_max: float = 60.0
    targets_max: int = 1024
    # Devices dialled at the same time.
    dials_max: int = 16
    message_bytes_max: int = 16 * 1024 * 1024
    # Bytes that may wait for the next drain, in total and per device; reading pauses above that.
    waiting_bytes_max: int = 64 * 1024 * 1024
    waiting_bytes_target_max: int = 8 * 1024 * 1024
    # Limits: paths in total and per device, leaves per JSON value, ports, and neighbours.
    paths_max: int = 2_000_000
    paths_target_max: int = 200_000
    json_leaves_max: int = 100_000
    ports_max: int = 1_000_000
    neighbours_max: int = 100_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "enabled", self.enabled and bool(self.targets))
        if len(self.targets) > self.targets_max:
            raise ConfigError(f"{_WHERE}.targets", f"{len(self.targets)} are more than targets_max", "raise it, or run a second collector")
        names: set[str] = set()
        for number, target in enumerate(self.targets, 1):
            _check_target(f"{_WHERE}.targets, number {number}", target, names)
            for pack in target.packs or self.packs:
                load_pack(pack)
        for name in ("backoff_s", "keepalive_s", "certificates_s", "dials_max", "message_bytes_max", "waiting_bytes_target_max"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{_WHERE}.{name}", "is not positive", "give a number above 0")

    def complete(self, target: Target) -> "Dial":
        """Return the connection parameters of a target: its own settings over those of the section."""
        own = {name: getattr(target, name) or getattr(self, name) for name in ("username", "password_file", "password_env", "ca_file")}
        own |= {name: getattr(target, name) or getattr(self, name) for name in ("cert_file", "key_file")}
        insecure = self.insecure if target.insecure is None else target.insecure
        packs = tuple(load_pack(name) for name in target.packs or self.packs)
        return Dial(
            name=target.name or target.address,
            address=target.address,
            packs=packs,
            insecure=insecure,
            server_name=target.server_name,
            gateway=target.gateway,
            interval_ms=self.interval_ms,
            **own,
        )


def _check_target(where: str, target: Target, names: set[str]) -> None:
    found = _ADDRESS.fullmatch(target.address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ConfigError(where, f"{target.address!r} is no address", "write host:port, as leaf1:9339")
    name = target.name or target.address
    if name in names:
        raise ConfigError(where, f"{name!r} is there twice", "give each target a name of its own")
    names.add(name)
    if bool(target.cert_file) != bool(target.key_file):
        raise ConfigError(where, "cert_file and key_file belong together", "give both, or neither")
    if target.password_file and target.password_env:
        raise ConfigError(where, "password_file and password_env are both given", "give one of them")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One path of a pack."""

    path: str
    mode: str
    interval_ms: int
    heartbeat_ms: int

    def subscription(self, origin: str, interval_ms: int) -> "gnmi_pb2.Subscription":
        """Return the protocol's message; ``interval_ms`` replaces its own interval if not 0."""
        from gnmi_pb import gnmi_pb2

        heartbeat = self.heartbeat_ms * _MS
        one = gnmi_pb2.Subscription(path=parse(self.path, origin), mode=self.mode.upper(), heartbeat_interval=heartbeat)
        if self.mode == "sample":
            one.sample_interval = (interval_ms or self.interval_ms) * _MS
        return one


@dataclass(frozen=True, slots=True)
class Pack:
    """Paths to subscribe to at a kind of device: ``encodings`` by preference; ``target`` is the prefix's, if the device needs one."""

    name: str
    doc: str
    encodings: tuple[str, ...]
    origin: str
    target: str
    paths: tuple[Wanted, ...]

    def encoding(self, offered: tuple[str, ...]) -> str:
        """Return the first encoding that the device offers, or the first of all if it offers none."""
        return next((one for one in self.encodings if one in offered), self.encodings[0])


@dataclass(frozen=True, slots=True)
class Dial:
    """The parameters of one target's connection; passwords and keys are read from their files at each connection."""

    name: str
    address: str
    packs: tuple[Pack, ...]
    username: str
    password_file: str
    password_env: str
    insecure: bool
    ca_file: str
    cert_file: str
    key_file: str
    server_name: str
    gateway: bool
    interval_ms: int

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return user name and password as metadata of a call. Raises ``ServiceError`` when the password cannot be read."""
        if not self.username:
            return ()
        if self.password_env:
            password = os.environ.get(self.password_env)
            if password is None:
                raise ServiceError(f"gnmi: {self.name}: there is no variable {self.password_env}", "set it for this service")
        else:
            password = _content(self.name, self.password_file).decode(errors="replace").strip() if self.password_file else ""
        return (("username", self.username), ("password", password))

    def certificates(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the contents of CA, key and certificate files, ``None`` where none is named. Raises ``ServiceError``."""
        ca, key, cert = (_content(self.name, one) if one else None for one in (self.ca_file, self.key_file, self.cert_file))
        return ca, key, cert


def _content(name: str, file: str) -> bytes:
    try:
        return File(file).read_bytes()
    except OSError as error:
        raise ServiceError(f"gnmi: {name}: {file} cannot be read ({error.strerror})", "correct the name or the permissions") from None


def pack_names() -> list[str]:
    """Return the names of all packs."""
    return sorted(file.stem for file in PACKS.glob("*.toml"))


@cache
def load_pack(name: str) -> Pack:
    """Return a pack. Raises ``ConfigError`` for an unknown name."""
    if name not in pack_names():
        raise ConfigError(f"{_WHERE}.packs", f"there is no pack {name!r}", f"choose from {', '.join(pack_names())}")
    return read_pack(name, tomllib.loads((PACKS / f"{name}.toml").read_text()))


def read_pack(name: str, data: Mapping[str, Any]) -> Pack:
    """Return the pack of a file's content."""
    paths = tuple(
        Wanted(one["path"], one.get("mode", "sample"), one.get("interval_ms", 0), one.get("heartbeat_ms", 0)) for one in data["paths"]
    )
    return Pack(name, data["doc"], tuple(data["encodings"]), data.get("origin", ""), data.get("target", ""), paths)


def parse(text: str, origin: str = "") -> "gnmi_pb2.Path":
    """Return the path of a text such as ``/interfaces/interface[name=*]/state``. Raises ``ValueError`` for other texts."""
    from gnmi_pb import gnmi_pb2

    steps = list(_STEP.finditer(text))
    if "".join(step[0] for step in steps) != text:
        raise ValueError(f"{text!r} is no path")
    path = gnmi_pb2.Path(origin=origin)
    for step in steps:
        keys = {key: re.sub(r"\\(.)", r"\1", value) for key, value in _KEY.findall(step[2])}
        path.elem.add(name=step[1], key=keys)
    return path


GNMI = Collector(
    name="gnmi",
    doc="switches by gNMI: counters, queues, priority flow control, link states, neighbours; and recorded responses",
    families=("port", "queue", "reading", "event", "inventory", "gap"),
    config=GnmiConfig,
    registers=WIDE,
    live=lazy("gnmi.receiver", "Gnmi"),
    recorded=lazy("gnmi.recording", "GnmiRecording"),
    recognises=lazy("gnmi.recording", "recognises"),
    warm=lazy("gnmi.decoder", "warm"),
)
