"""gNMI messages to rows: beside protobuf's own parse of the same messages, and a copy of their bytes."""

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from .measure import Line, best_rate

GOAL, MEMORY_GOAL_BYTES = 1.5e6, 300e6

_DEVICES, _PORTS, _QUEUES = 8, 64, 8
_START_NS = 1_700_000_000_000_000_000
_LEAVES = (
    *(f"{way}-{what}" for way in ("in", "out") for what in ("octets", "pkts", "unicast-pkts", "multicast-pkts", "discards", "errors")),
    *("in-fcs-errors", "carrier-transitions"),
)


def gnmi(seconds: int) -> Iterator[Line]:
    """Measure updates/s for each form of messages, and the memory of a process that decodes them."""
    from gnmi_pb.gnmi_pb2 import SubscribeResponse

    from ...collectors.gnmi.decoder import Decoder, Messages
    from ...pipeline.memory import keep_freed

    keep_freed()
    rounds, bare = max(1, min(seconds, 20)), ("protobuf's bare parse", SubscribeResponse.FromString)
    for name, raw, updates, peer, parse in (
        ("gNMI updates, prefix and leaf", _messages(rounds, prefix=True), len(_LEAVES), *bare),
        ("gNMI updates, whole paths", _messages(rounds, prefix=False), len(_LEAVES), *bare),
        ("gNMI leaves of SONiC's JSON", _documents(rounds), len(_SAI) * _PORTS, "protobuf and json.loads", _parsed),
    ):
        decoder = Decoder()
        decoder.stream("bench", names_devices=True)
        messages = Messages(raw, np.zeros(len(raw), np.int32), np.zeros(len(raw), np.int64))
        decoder.decode(messages)
        total = updates * len(raw)
        fast = best_rate(lambda decoder=decoder, messages=messages: decoder.decode(messages), total)
        slow = best_rate(lambda parse=parse, raw=raw: [parse(one) for one in raw], total, runs=3)
        copy = best_rate(lambda raw=raw: b"".join(raw), total)
        beside = f"{fast / slow:.2f} of {peer}, {fast / copy:.3f} of a copy"
        yield Line(name, f"{fast / 1e6:.2f} M updates/s", beside, f">= {GOAL / 1e6:g} M/s")
    alone = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True)
    peak = int(alone.stdout)
    yield Line("the first of these alone, peak memory", f"{peak / 1e6:.0f} MB", f"{peak / MEMORY_GOAL_BYTES:.2f} of the goal", "< 300 MB")


def _parsed(raw: bytes) -> object:
    import json

    from gnmi_pb.gnmi_pb2 import SubscribeResponse

    return json.loads(SubscribeResponse.FromString(raw).update.update[0].val.json_ietf_val)


def _peak_bytes() -> int:
    """Decode 20 s of messages; return the most memory that this process has had, which ``getrusage`` would carry over from its parent."""
    from ...collectors.gnmi.decoder import Decoder, Messages

    decoder = Decoder()
    decoder.stream("bench", names_devices=True)
    for turn in range(20):
        raw = _messages(1, prefix=True, first=turn)
        decoder.decode(Messages(raw, np.zeros(len(raw), np.int32), np.zeros(len(raw), np.int64)))
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def _messages(rounds: int, *, prefix: bool, first: int = 0) -> list[bytes]:
    """Return all counters of all ports once a second, a notification for each port: OpenConfig paths with or without prefix."""
    from gnmi_pb.gnmi_pb2 import Notification, Path, PathElem, SubscribeResponse, TypedValue

    raw = []
    for turn in range(first, first + rounds):
        for port in range(_PORTS):
            name = PathElem(name="interface", key={"name": f"Ethernet{8 * port}"})
            above = [PathElem(name="interfaces"), name, PathElem(name="state"), PathElem(name="counters")]
            for device in range(_DEVICES):
                note = Notification(
                    timestamp=_START_NS + turn * 1_000_000_000, prefix=Path(target=f"leaf{device}", elem=above if prefix else ())
                )
                for number, leaf in enumerate(_LEAVES):
                    path = Path(elem=[*(() if prefix else above), PathElem(name=leaf)])
                    note.update.add(path=path, val=TypedValue(uint_val=10**12 * (number + 1) + turn))
                raw.append(SubscribeResponse(update=note).SerializeToString())
    return raw


_SAI = tuple(f"SAI_PORT_STAT_IF_{way}_{what}" for way in ("IN", "OUT") for what in ("OCTETS", "UCAST_PKTS", "DISCARDS", "ERRORS")) + tuple(
    f"SAI_PORT_STAT_PFC_{priority}_{what}" for priority in range(_QUEUES) for what in ("RX_PKTS", "TX_PKTS", "RX_PAUSE_DURATION_US")
)


def _documents(rounds: int) -> list[bytes]:
    """Return counters as SONiC writes them: one JSON object with all ports, numbers as strings."""
    import json

    from gnmi_pb.gnmi_pb2 import Notification, Path, PathElem, SubscribeResponse, TypedValue

    raw = []
    for turn in range(rounds):
        tree = {f"Ethernet{8 * port}": {name: str(10**12 + turn + at) for at, name in enumerate(_SAI)} for port in range(_PORTS)}
        value = TypedValue(json_ietf_val=json.dumps(tree).encode())
        for device in range(_DEVICES):
            note = Notification(timestamp=_START_NS + turn * 1_000_000_000, prefix=Path(target=f"leaf{device}"))
            note.update.add(path=Path(elem=[PathElem(name="COUNTERS"), PathElem(name="Ethernet*")]), val=value)
            raw.append(SubscribeResponse(update=note).SerializeToString())
    return raw


if __name__ == "__main__":
    print(_peak_bytes())
