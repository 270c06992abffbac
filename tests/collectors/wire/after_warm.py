"""A script: warms one source, sends it ordinary input, and prints which kernels were compiled for that input all the same.

Started by ``test_warm.py`` in a process of its own, where nothing is compiled yet.
"""

import json
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from ipfix_bytes import T0, message, port_template, record, template

from weft.collectors import COLLECTORS
from weft.collectors.base import Options
from weft.pipeline.clock import SystemClock

SECONDS_MAX = 60


def signatures() -> dict[str, int]:
    """Return how many signatures each kernel of the collectors is compiled for."""
    found = {}
    for module in [one for name, one in sys.modules.items() if name.startswith("weft.collectors.")]:
        for value in vars(module).values():
            if hasattr(value, "py_func") and hasattr(value, "signatures"):
                found[f"{value.py_func.__module__}.{value.py_func.__name__}"] = len(value.signatures)
    return found


def in_pcap(payloads: list[bytes], port: int) -> bytes:
    """Return a pcap file of UDP datagrams over IPv4, link type raw IP."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    for k, payload in enumerate(payloads):
        size = 28 + len(payload)
        address = bytes([192, 0, 2, 1 + k % 3])
        packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 17, 0, address, bytes([192, 0, 2, 9]))
        packet += struct.pack(">HHHH", 777, port, 8 + len(payload), 0) + payload
        out += struct.pack("<IIII", 1_700_000_000, k, size, size) + packet
    return out


def received(live, port: int, datagrams: list[bytes], wanted: set[str]) -> None:
    """Send datagrams, and drain until all wanted families came."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        deadline, missing = time.monotonic() + SECONDS_MAX, set(wanted)
        for datagram in datagrams:
            sender.sendto(datagram, ("127.0.0.1", port))
        while missing and time.monotonic() < deadline:
            missing -= {batch.family for batch in live.drain() if batch.frame.height}
            time.sleep(0.01)
    live.stop()
    live.drain()
    assert not missing, f"no {missing}"


def replayed(name: str, file: Path) -> set[str]:
    """Replay a file; return the families that it gave."""
    made = COLLECTORS[name].recorded
    assert made is not None
    return {batch.family for batch in made(file, Options(check_icrc=True)).batches() if batch.frame.height}


def sflow(folder: Path) -> None:
    """Feed the datagrams of the lab's agent, through a socket and as a capture."""
    from weft.collectors.sflow.receiver import SflowConfig, SflowListener
    from weft.lab.switch.roce import sampled
    from weft.lab.switch.script import Script
    from weft.lab.switch.sflow import Agent, AgentConfig

    source = Script()
    datagrams: list[bytes] = []
    for agent in (Agent(source), Agent(source, AgentConfig(expanded=True, sub_agent=1))):
        flows = sampled(source, T0, 20)
        datagrams += [*agent.counters(T0), *agent.flows(flows, T0), *agent.discards(flows, np.full(20, 259), T0)]
    live = SflowListener(SflowConfig(port=0), SystemClock())
    live.start()
    received(live, live.port, datagrams, {"port", "reading", "packet", "latency", "event", "queue"})
    file = folder / "agents.pcap"
    file.write_bytes(in_pcap(datagrams, 6343))
    assert {"port", "packet", "latency", "event"} <= replayed("sflow", file)


def hft(folder: Path) -> None:
    """Send records before and behind their templates, by both transports, in a file of messages and in a capture."""
    from weft.collectors.hft.receiver import Hft, HftConfig

    now = time.time_ns() // 100_000 * 100_000 - 10**9
    data = [message([(256, record(now + k * 100_000, [k, k, k, k]))], sequence=k) for k in range(64)]
    odd = [message([(258, b"\3abc\2de")]), message([(258, b"\3abc\2de")])]
    templates = message([(2, port_template(256, 2)), (2, template(258, [struct.pack(">HH", 1, 65535)]))])
    renewed = [
        message([(2, port_template(256, 2, (0, 9, 1)))]),
        *(message([(256, record(now + 10**7 + k * 100_000, [k] * 6))]) for k in range(64)),
    ]
    messages = [data[0], odd[0], templates, *data, odd[1], templates, *renewed]
    live = Hft(HftConfig(enabled=True, port=0, state=str(folder)), SystemClock())
    live.start()
    with socket.create_connection(("127.0.0.1", live.tcp_port)) as connection:
        connection.sendall(b"".join(messages))
    received(live, live.udp_port, messages, {"burst_sample"})
    file = folder / "messages.ipfix"
    file.write_bytes(b"".join(messages))
    assert "burst_sample" in replayed("hft", file)
    file = folder / "messages.pcap"
    file.write_bytes(in_pcap(messages, 4739))
    assert "burst_sample" in replayed("hft", file)


def packets(folder: Path) -> None:
    """Replay a pcap with RoCEv2 and other packets."""
    bth = [struct.pack(">BBHII", opcode, 0, 0xFFFF, 9, psn) + bytes(40) for psn, opcode in enumerate((4, 10, 17, 4))]
    file = folder / "packets.pcap"
    file.write_bytes(in_pcap(bth, 4791) + in_pcap([b"other"], 53)[24:])
    made = COLLECTORS["packets"].recorded
    assert made is not None
    assert sum(batch.frame.height for batch in made(file, Options()).batches()) == 4
    assert replayed("packets", file) == {"gap"}


def main(name: str, folder: str) -> None:
    """Print the kernels that ordinary input of a source compiled again."""
    warm = COLLECTORS[name].warm
    assert warm is not None and "numba" not in sys.modules
    warm()
    before = signatures()
    {"sflow": sflow, "hft": hft, "packets": packets}[name](Path(folder))
    after = signatures()
    print(json.dumps({"kernels": len(before), "compiled": sorted(one for one, number in after.items() if number != before.get(one, 0))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
