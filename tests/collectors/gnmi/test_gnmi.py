"""The gNMI collector against servers on this machine: the lab's switch, and devices that misbehave in every way."""

import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import polars as pl
import pytest
from gnmi_pb import gnmi_pb2
from switch_rig import port_frame, queue_frame

from weft.collectors.gnmi.config import GnmiConfig, Target, load_pack, pack_names, parse
from weft.lab.switch.gnmi import Server, ServerConfig
from weft.lab.switch.script import Script, Shape
from weft.pipeline.clock import NS_PER_S
from weft.pipeline.errors import ConfigError, ServiceError

from .gnmi_rig import CLOCK, Authority, Collecting, Device, octets

COMMON = ("ts", "recv_ts", "source", "device", "epoch")


def config(port: int, *packs: str, name: str = "leaf1", **fields) -> GnmiConfig:
    """Return a configuration of one target on this machine, with short timeouts, in clear text by default."""
    own = {key: fields.pop(key) for key in list(fields) if key in Target.__dataclass_fields__}
    target = Target(**{"name": name, "address": f"127.0.0.1:{port}", "packs": packs, "insecure": True} | own)
    return GnmiConfig(targets=(target,), **{"backoff_s": 0.05, "backoff_s_max": 0.4, "interval_ms": 100} | fields)


@pytest.fixture
def script() -> Script:
    """A small switch that booted a minute ago."""
    return Script(Shape(ports=8, boots_ns=(CLOCK.now_ns() - 60 * NS_PER_S,)))


@pytest.fixture
def switch(script: Script) -> Iterator[Server]:
    """That switch's gNMI service in clear text."""
    server = Server(script, ServerConfig(), CLOCK)
    server.start()
    yield server
    server.stop()


def agree(rows: list[dict], truth: pl.DataFrame, key: tuple[str, ...]) -> int:
    """Assert that every column of the rows equals the truth; return how many values were compared."""
    known = {tuple(row[name] for name in key): row for row in truth.iter_rows(named=True)}
    compared = 0
    for row in rows:
        true = known[tuple(row[name] for name in key)]
        for name in row.keys() - {*COMMON, *key}:
            if row[name] is not None and name in true:
                assert row[name] == true[name], (name, row)
                compared += 1
    return compared


def test_openconfig_tells_the_truth(switch, script):
    """Rows of ports and queues from the OpenConfig and LLDP packs equal the switch's counters at that time; links equal its cabling."""
    with Collecting(config(switch.port, "openconfig", "lldp")) as collecting:
        collecting.until(lambda: len(collecting.rows("queue")) > 3 * 64 and collecting.rows("inventory"))
    instants = sorted({row["ts"] for family in ("port", "queue") for row in collecting.rows(family)})
    state = script.at(instants)
    assert agree(collecting.rows("port"), port_frame(script.switch, state), ("ts", "port")) > 8 * 12
    assert agree(collecting.rows("queue"), queue_frame(script.switch, state), ("ts", "port", "queue", "direction")) > 64 * 6
    assert {row["epoch"] for row in collecting.rows("port", oper_up=None)} <= {0, script.shape.boots_ns[0]}
    links = {(row["key"], row["peer_device"], row["peer_port"]) for row in collecting.rows("inventory", kind="link")}
    assert links <= set(zip(script.switch.ports, *zip(*script.switch.peers, strict=True), strict=True)) | {
        (port, None, None) for port in script.switch.ports
    }
    assert {row["value"] for row in collecting.rows("reading", name="gnmi_up")} <= {0.0, 1.0}


def test_sonic_tells_the_truth(switch, script):
    """The SONiC pack gives ports with FEC bins, pause by priority, queues and priority groups, all as the switch counted."""
    with Collecting(config(switch.port, "sonic")) as collecting:
        collecting.until(lambda: len({row["ts"] for row in collecting.rows("queue", direction="rx")}) > 2)
    instants = sorted({row["ts"] for family in ("port", "queue") for row in collecting.rows(family)})
    state = script.at(instants)
    assert agree(collecting.rows("port"), port_frame(script.switch, state), ("ts", "port")) > 8 * 10
    assert all(len(row["fec_bins"]) == 16 for row in collecting.rows("port"))
    assert agree(collecting.rows("queue"), queue_frame(script.switch, state), ("ts", "port", "queue", "direction")) > 64 * 6
    assert any(row["pfc_rx_frames"] for row in collecting.rows("queue"))


def test_a_restart_is_admitted(script):
    """A target that disconnects and returns gives an event for each, and a gap row from the last message before to the first after."""
    server = Server(script, ServerConfig(), CLOCK)
    server.start()
    with Collecting(config(server.port, "openconfig")) as collecting:
        collecting.until(lambda: collecting.rows("event", kind="target_up"))
        server.stop()
        collecting.until(lambda: collecting.rows("event", kind="target_down"))
        last = max(row["recv_ts"] for row in collecting.rows("port"))
        server.start()
        collecting.until(lambda: collecting.rows("gap"))
        assert collecting.count("targets_up") == 1
    server.stop()
    (gap,) = collecting.rows("gap")
    assert (gap["device"], gap["what"], gap["reason"], gap["missed"]) == ("leaf1", "updates", "stream_down", None)
    assert gap["ts"] >= last and gap["recv_ts"] > gap["ts"]
    assert [row["recv_ts"] for row in collecting.rows("port") if gap["ts"] < row["recv_ts"] < gap["recv_ts"]] == []


def test_certificates_are_verified(tmp_path, script, caplog):
    """With the right CA the device is received; with a wrong CA or name, or without a required client certificate, a hint is logged."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.issue("server", host="leaf1.test")
    old, old_key = authority.issue("old", days=0)
    ours, our_key = authority.issue("client")
    named = {"insecure": False, "server_name": "leaf1.test"}
    cases = [
        (ServerConfig(certificate=cert, key=key), {**named, "ca_file": str(authority.file)}, ""),
        (ServerConfig(certificate=cert, key=key), {**named, "ca_file": str(stranger.file)}, "ca_file"),
        (ServerConfig(certificate=cert, key=key), {"insecure": False, "ca_file": str(authority.file)}, "server_name"),
        (ServerConfig(certificate=old, key=old_key), {"insecure": False, "ca_file": str(authority.file)}, "expired"),
        (ServerConfig(certificate=cert, key=key), {}, "remove insecure = true"),
        (ServerConfig(), {"insecure": False, "ca_file": str(authority.file)}, "does not speak TLS"),
        (
            ServerConfig(certificate=cert, key=key, client_ca=authority.file),
            {**named, "ca_file": str(authority.file)},
            "cert_file and key_file",
        ),
        (
            ServerConfig(certificate=cert, key=key, client_ca=authority.file),
            {**named, "ca_file": str(authority.file), "cert_file": str(ours), "key_file": str(our_key)},
            "",
        ),
    ]
    for serve, dial, hint in cases:
        server = Server(script, serve, CLOCK)
        server.start()
        caplog.clear()
        with caplog.at_level(logging.WARNING), Collecting(config(server.port, "openconfig", **dial)) as collecting:
            if hint:
                collecting.until(lambda: collecting.rows("event", kind="target_down"))
                assert hint in caplog.text
            collecting.until(lambda hint=hint: hint or collecting.rows("port"))
        server.stop()
        assert bool(collecting.rows("port")) == (not hint)


def test_trouble_is_said_once(caplog):
    """An unreachable target is dialled with growing delays and logged once."""
    with caplog.at_level(logging.WARNING), Collecting(config(1, "openconfig", backoff_s=0.1)) as collecting:
        began = CLOCK.monotonic_ns()
        collecting.until(lambda: collecting.count("dials") >= 4)
        spent_s = (CLOCK.monotonic_ns() - began) / NS_PER_S
    # The shortest pauses before the second, third and fourth dial.
    assert spent_s >= 0.05 + 0.1 + 0.2 - 0.02
    assert len([record for record in caplog.records if "nothing listens at 127.0.0.1:1" in record.message]) == 1
    assert len(collecting.rows("event", kind="target_down")) == 1


def test_certificates_are_read_anew(tmp_path, script):
    """When a certificate file changes, a target that is up is dialled again with it and continues."""
    authority = Authority(tmp_path)
    server = Server(script, ServerConfig("127.0.0.1", 0, *authority.issue("server"), authority.file), CLOCK)
    server.start()
    ours, our_key = authority.issue("client")
    dial = {"insecure": False, "ca_file": str(authority.file), "cert_file": str(ours), "key_file": str(our_key)}
    with Collecting(config(server.port, "openconfig", certificates_s=0.1, **dial)) as collecting:
        collecting.until(lambda: collecting.rows("event", kind="target_up"))
        authority.issue("client")
        collecting.until(lambda: len(collecting.rows("event", kind="target_up")) == 2)
        assert collecting.rows("event", kind="target_down")[0]["reason"] == "certificates_changed"
    server.stop()


def test_calls_carry_the_user(tmp_path, script, caplog):
    """Each call carries user and password from a file; a wrong password is logged with a hint."""
    server = Server(script, ServerConfig(users={"weft": "right"}), CLOCK)
    server.start()
    secret = tmp_path / "password"
    for password, hint in (("right\n", ""), ("wrong", "correct username and password_file")):
        secret.write_text(password)
        with (
            caplog.at_level(logging.WARNING),
            Collecting(config(server.port, "openconfig", username="weft", password_file=str(secret))) as collecting,
        ):
            collecting.until(lambda: collecting.rows("port") or collecting.rows("event", kind="target_down"))
        assert bool(collecting.rows("port")) == (not hint)
        assert hint in caplog.text
        assert "wrong" not in caplog.text.replace("wrong user name", "")
    server.stop()


def test_what_a_device_lacks_costs_nothing_else(caplog):
    """If a device refuses a path, the others are still served; if it refuses on-change, the path is sampled."""

    def subscribed(wanted: gnmi_pb2.SubscriptionList, context: grpc.ServicerContext) -> Iterator[gnmi_pb2.SubscribeResponse]:
        names = [one.path.elem[0].name for one in wanted.subscription]
        if "qos" in names or any(one.mode == gnmi_pb2.ON_CHANGE for one in wanted.subscription):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such thing here")
        while not device.ended.wait(0.05):
            yield octets(wanted.subscription[0].path.elem[-1].name, 5)

    device = Device(subscribed, encodings=(gnmi_pb2.JSON_IETF,))
    port = device.start()
    with caplog.at_level(logging.WARNING), Collecting(config(port, "openconfig")) as collecting:
        collecting.until(lambda: {"counters", "oper-status", "boot-time"} <= {row["port"] for row in collecting.rows("port")})
        collecting.until(lambda: collecting.count("paths_refused"))
    device.stop()
    assert "does not serve /qos/interfaces" in caplog.text
    assert {one.encoding for one in device.asked} == {gnmi_pb2.JSON_IETF}
    assert all(one.subscription[0].path.origin == "openconfig" for one in device.asked)


def test_a_hostile_target_does_not_stop_the_others():
    """A good target is received beside targets that flood, send garbage or too large messages; waiting bytes are bounded."""

    def flood(_wanted, _context):
        message = octets("flood", 1).SerializeToString() * 2000
        while not hostile.ended.is_set():
            yield message

    def rubbish(_wanted, _context):
        while not wild.ended.wait(0.01):
            yield b"\x0a\xff\xff\xff\xff\x0f rubbish"

    def large(_wanted, _context):
        yield bytes(2 * 1024 * 1024)

    def good(_wanted, _context):
        while not tame.ended.wait(0.02):
            yield octets("good", 3)

    hostile, wild, _, tame = devices = [Device(one) for one in (flood, rubbish, large, good)]
    names = ("hostile", "wild", "huge", "tame")
    targets = tuple(
        Target(name=name, address=f"127.0.0.1:{device.start()}", insecure=True) for name, device in zip(names, devices, strict=True)
    )
    limits = {"message_bytes_max": 1024 * 1024, "waiting_bytes_max": 4 * 1024 * 1024, "waiting_bytes_target_max": 1024 * 1024}
    with Collecting(GnmiConfig(targets=targets, packs=("lldp",), backoff_s=0.05, backoff_s_max=0.2, **limits)) as collecting:
        collecting.until(
            lambda: len(collecting.rows("port", device="tame")) >= 20 and collecting.count("paused") and collecting.count("message_large")
        )
        assert collecting.count("waiting_bytes") <= 5 * 1024 * 1024
        assert collecting.count("malformed") > 0
    for device in devices:
        device.stop()


def test_a_start_is_no_storm():
    """Many targets are dialled a few at a time, and all are received."""

    def subscribed(_wanted, _context):
        yield octets("eth1", 1)
        device.ended.wait()

    device = Device(subscribed, hold_s=0.02)
    port = device.start()
    targets = tuple(Target(name=f"leaf{n}", address=f"127.0.0.1:{port}", insecure=True, packs=("lldp",)) for n in range(20))
    with Collecting(GnmiConfig(targets=targets, dials_max=3)) as collecting:
        collecting.until(lambda: len({row["device"] for row in collecting.rows("port")}) == 20)
    device.stop()
    assert 1 <= device.dialling_most <= 3


def test_stop_is_prompt_and_may_be_repeated(switch):
    """Stopping ends the streams within the time of a few drains, in any state, and can be done twice."""
    collecting = Collecting(config(switch.port, "openconfig"))
    with collecting:
        collecting.until(lambda: collecting.rows("port"))
        began = CLOCK.monotonic_ns()
    assert CLOCK.monotonic_ns() - began < 3 * NS_PER_S
    collecting.gnmi.stop()
    assert collecting.gnmi.drain() == []


@pytest.mark.parametrize(
    ("targets", "part"),
    [
        ((Target(address="leaf1"),), "host:port"),
        ((Target(address="leaf1:99999"),), "host:port"),
        ((Target(address="a:1"), Target(address="a:1")), "a name of its own"),
        ((Target(address="a:1", packs=("opencfg",)),), "choose from"),
        ((Target(address="a:1", cert_file="x"),), "give both"),
        ((Target(address="a:1", password_file="x", password_env="Y"),), "give one of them"),
    ],
)
def test_a_wrong_target_is_refused_with_the_mend(targets, part):
    """An invalid target is an error with a hint."""
    with pytest.raises(ConfigError, match=part):
        GnmiConfig(targets=targets)


def test_a_file_that_is_not_there_stops_the_start(tmp_path):
    """An unreadable certificate is reported when the collector starts, not at the first dial."""
    gone = str(tmp_path / "gone.crt")
    with pytest.raises(ServiceError, match=r"gone\.crt"), Collecting(config(1, "openconfig", insecure=False, ca_file=gone)):
        pass


@pytest.mark.parametrize("name", pack_names())
def test_packs_are_sound(name):
    """Every path of every pack parses and has a valid mode, and samples have an interval."""
    pack = load_pack(name)
    assert pack.doc and pack.encodings
    for one in pack.paths:
        made = one.subscription(pack.origin, 0)
        assert len(made.path.elem) >= 2
        assert (made.sample_interval > 0) == (one.mode == "sample")
        assert all(len(elem.name) > 0 for elem in made.path.elem)


def test_paths_are_parsed():
    """Names, keys with slashes and escaped brackets are parsed; texts that are not paths are refused."""
    path = parse(r"/a/b[x=1/2][y=z\]]/c", "o")
    assert [(elem.name, dict(elem.key)) for elem in path.elem] == [("a", {}), ("b", {"x": "1/2", "y": "z]"}), ("c", {})]
    assert path.origin == "o"
    for wrong in ("a", "/a//b", "/a[b]", "/a[b=1"):
        with pytest.raises(ValueError, match="no path"):
            parse(wrong)


# OpenConfig's own server in Go: `go install github.com/openconfig/gnmi/testing/fake/gnmi/cmd/fake_server@latest`.
FAKE = os.environ.get("WEFT_TEST_GNMI_FAKE") or shutil.which("fake_server") or shutil.which("fake_server", path=Path.home() / "go/bin")


@pytest.mark.skipif(not FAKE, reason="OpenConfig's fake_server is not installed")
def test_a_server_in_go_is_heard(tmp_path):
    """OpenConfig's own test server, over TLS, accepts the subscription, and its messages become rows."""
    cert, key = Authority(tmp_path).issue("server")
    names = "".join(f'elem {{ name: "{name}" }}' for name in ("state", "counters", "in-octets"))
    prefix = 'prefix { elem { name: "interfaces" } elem { name: "interface" key { key: "name" value: "eth1" } } }'
    update = (
        f"update {{ timestamp: 1700000000000000000 {prefix} update {{ path {{ {names} }} val {{ uint_val: 18446744073709551615 }} }} }}"
    )
    script = tmp_path / "fake.txt"
    script.write_text(f'target: "t" client_type: GRPC_GNMI fixed {{ responses {{ {update} }} responses {{ sync_response: true }} }}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(FAKE), "-config", str(script), "-text", "-port", str(port), "-server_crt", str(cert), "-server_key", str(key)]
    command += ["-allow_no_client_auth", "-log_dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            with Collecting(config(port, "openconfig", insecure=False, ca_file=str(tmp_path / "ca.crt"))) as collecting:
                collecting.until(lambda: collecting.rows("port") and collecting.count("synced"))
        finally:
            server.kill()
    (row, *_) = collecting.rows("port")
    assert (row["ts"], row["port"], row["rx_bytes"]) == (1_700_000_000_000_000_000, "eth1", 2**64 - 1)


def test_it_is_off_without_targets():
    """Without a target the collector does not run; a section with targets runs unless it is disabled."""
    target = Target(address="leaf1:9339")
    assert [GnmiConfig().enabled, GnmiConfig(targets=(target,)).enabled, GnmiConfig(enabled=False, targets=(target,)).enabled] == [
        False,
        True,
        False,
    ]
