"""The gNMI server: independent clients read the switch's counters in every mode and with every kind of security."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from gnmi_pb import gnmi_pb2, gnmi_pb2_grpc

from weft.lab.switch.gnmi import Server, ServerConfig
from weft.lab.switch.script import LOSSLESS, Script, Shape
from weft.pipeline.clock import NS_PER_S, SystemClock
from weft.pipeline.errors import ServiceError

LIMIT_S = 60
PORTS = 8
List, Sub = gnmi_pb2.SubscriptionList, gnmi_pb2.Subscription

# pygnmi registers gnmi.proto a second time, so it runs in a child process and prints its results.
PYGNMI = """
import json, sys
from pygnmi.client import gNMIclient
requested = json.loads(sys.argv[1])
with gNMIclient(**{**requested["client"], "target": tuple(requested["client"]["target"])}) as client:
    for call, arguments in requested["calls"]:
        if call == "subscribe_stream":
            messages = client.subscribe_stream(subscribe=arguments)
            got = []
            for message in messages:
                got.append(message)
                if len(got) == requested["messages"]:
                    break
            messages.close()
            print(json.dumps(got))
        elif call == "subscribe_once":
            print(json.dumps(list(client.subscribe_once(subscribe=arguments))))
        else:
            print(json.dumps(getattr(client, call)(**arguments)))
"""


@pytest.fixture(scope="module")
def script() -> Script:
    """Return a switch whose last port is down for 0.2 s in each second."""
    return Script(Shape(ports=PORTS, boots_ns=(SystemClock().now_ns() - 5 * NS_PER_S,), flap_ns=NS_PER_S))


@pytest.fixture
def serve(script: Script) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server with a configuration; it ends with the test."""
    started: list[Server] = []

    def start(**config: object) -> Server:
        server = Server(script, ServerConfig(**config), SystemClock())  # type: ignore[arg-type]
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def stub(serve) -> Iterator[gnmi_pb2_grpc.gNMIStub]:
    """Return a stub of a server without security."""
    with grpc.insecure_channel(f"127.0.0.1:{serve(change_ns=20_000_000).port}") as channel:
        yield gnmi_pb2_grpc.gNMIStub(channel)


def path(text: str, origin: str = "", target: str = "") -> gnmi_pb2.Path:
    """Return a path of text; keys are written [name=value]."""
    made = gnmi_pb2.Path(origin=origin, target=target)
    for part in filter(None, text.split("/")):
        name, _, keys = part.partition("[")
        element = made.elem.add(name=name)
        if keys:
            key, _, value = keys.rstrip("]").partition("=")
            element.key[key] = value
    return made


def text(*paths: gnmi_pb2.Path) -> str:
    """Return prefix and path as text."""
    parts = [element for one in paths for element in one.elem]
    return "/".join(element.name + "".join(f"[{key}={value}]" for key, value in sorted(element.key.items())) for element in parts)


def request(*subscriptions: Sub, mode: int = List.ONCE, encoding: int = gnmi_pb2.PROTO, **more: object) -> gnmi_pb2.SubscribeRequest:
    """Return a subscription."""
    wanted = List(subscription=subscriptions, mode=mode, encoding=encoding, **more)  # type: ignore[arg-type]
    return gnmi_pb2.SubscribeRequest(subscribe=wanted)


def once(stub: gnmi_pb2_grpc.gNMIStub, requested: gnmi_pb2.SubscribeRequest) -> list[gnmi_pb2.Notification]:
    """Return the notifications of a ONCE subscription, which must end with sync_response."""
    *notes, last = stub.Subscribe(iter([requested]), timeout=LIMIT_S)
    assert last.sync_response
    return [note.update for note in notes]


def until(stub: gnmi_pb2_grpc.gNMIStub, requested: gnmi_pb2.SubscribeRequest, enough: Callable[[list], bool]) -> list:
    """Return the messages of a stream until they are enough."""
    call, got = stub.Subscribe(iter([requested]), timeout=LIMIT_S), []
    for message in call:
        got.append(message)
        if enough(got):
            call.cancel()
            return got
    raise AssertionError("the stream ended")


def pygnmi(client: dict, *calls: tuple[str, dict], messages: int = 1) -> list:
    """Run calls of pygnmi in a child process and return their results."""
    requested = json.dumps({"client": client, "calls": calls, "messages": messages})
    done = subprocess.run([sys.executable, "-c", PYGNMI, requested], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


SECURITY = {
    "insecure": ({}, {"insecure": True}),
    "TLS": ({"certificate": "server.crt", "key": "server.key"}, {"path_root": "ca.crt"}),
    "mTLS": (
        {"certificate": "server.crt", "key": "server.key", "client_ca": "ca.crt"},
        {"path_root": "ca.crt", "path_cert": "client.crt", "path_key": "client.key"},
    ),
}


@pytest.mark.parametrize(("server", "client"), SECURITY.values(), ids=SECURITY)
def test_pygnmi_gets_what_the_switch_counts(script, serve, certificates: Path, server, client):
    """With each kind of security pygnmi reads capabilities, gets and subscribes; all values are the switch's."""
    port = serve(**{name: certificates / file for name, file in server.items()}).port
    target = {"target": ["localhost", port]} | {key: str(certificates / v) if isinstance(v, str) else v for key, v in client.items()}
    counters = "/interfaces/interface[name=Ethernet16]/state/counters"
    sample = {
        "path": "/qos/interfaces/interface[interface-id=*]/output/queues/queue[name=3]",
        "mode": "sample",
        "sample_interval": 100_000_000,
    }
    capabilities, got, tree, stream = pygnmi(
        target,
        ("capabilities", {}),
        ("get", {"path": [counters], "encoding": "proto"}),
        ("get", {"path": ["openconfig-interfaces:interfaces"], "encoding": "json_ietf"}),
        ("subscribe_stream", {"subscription": [sample], "mode": "stream", "encoding": "proto"}),
        messages=2 * PORTS + 1,
    )
    assert "openconfig-interfaces" in {model["name"] for model in capabilities["supported_models"]}
    assert set(capabilities["supported_encodings"]) == {"json", "proto", "json_ietf"}

    (note,) = got["notification"]
    state = script.at([note["timestamp"]])
    seen = {update["path"].rpartition("/")[2]: update["val"] for update in note["update"]}
    for name, column in {"in-octets": "rx_bytes", "out-pkts": "tx_packets", "out-discards": "tx_discards"}.items():
        assert seen[name] == state.port(column)[0, 2]

    (note,) = tree["notification"]
    state = script.at([note["timestamp"]])
    interfaces = note["update"][0]["val"]["openconfig-interfaces:interface"]
    assert [one["name"] for one in interfaces] == list(script.switch.ports)
    assert [one["state"]["counters"]["out-octets"] for one in interfaces] == [str(v) for v in state.port("tx_bytes")[0]]
    assert interfaces[0]["openconfig-if-ethernet:ethernet"]["state"]["port-speed"] == "openconfig-if-ethernet:SPEED_400GB"

    # pygnmi returns everything up to sync_response as one message.
    assert stream[0]["sync_response"]
    for message in stream[1:]:
        if "update" in message:
            note = message["update"]
            name = note["prefix"].split("interface-id=")[1].split("]")[0]
            state, index = script.at([note["timestamp"]]), script.switch.ports.index(name)
            seen = {update["path"]: update["val"] for update in note["update"]}
            assert seen["transmit-octets"] == state.queue("bytes")[0, index, LOSSLESS]
            assert seen["ecn-marked-pkts"] == state.queue("ecn_marked_packets")[0, index, LOSSLESS]


def test_a_client_without_the_right_certificate_is_refused(serve, certificates: Path):
    """With mTLS a client of another authority, and one without a certificate, get no answer."""
    server = serve(**{name: certificates / file for name, file in SECURITY["mTLS"][0].items()})
    read = {name: (certificates / name).read_bytes() for name in ("ca.crt", "stranger.key", "stranger.crt", "client.key", "client.crt")}
    for key, chain, refused in (
        (read["stranger.key"], read["stranger.crt"], True),
        (None, None, True),
        (read["client.key"], read["client.crt"], False),
    ):
        credentials = grpc.ssl_channel_credentials(read["ca.crt"], key, chain)
        with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
            try:
                gnmi_pb2_grpc.gNMIStub(channel).Capabilities(gnmi_pb2.CapabilityRequest(), timeout=LIMIT_S)
                answered = True
            except grpc.RpcError as error:
                answered = error.code() != grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert answered != refused


def test_a_wrong_password_is_refused(serve):
    """With users configured, a call needs a valid name and password."""
    server = serve(users={"admin": "secret"})
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = gnmi_pb2_grpc.gNMIStub(channel).Capabilities
        right = (("username", "admin"), ("password", "secret"))
        assert call(gnmi_pb2.CapabilityRequest(), metadata=right, timeout=LIMIT_S).gNMI_version
        for wrong in ((("username", "admin"), ("password", "guess")), ()):
            with pytest.raises(grpc.RpcError) as caught:
                call(gnmi_pb2.CapabilityRequest(), metadata=wrong, timeout=LIMIT_S)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("requested", "leaves"),
    [
        ("interfaces/interface[name=Ethernet8]/state/counters/in-octets", 1),
        ("interfaces/interface[name=*]/state/counters/in-octets", PORTS),
        ("interfaces/interface/state/counters/in-octets", PORTS),
        ("interfaces/interface/state/counters/*", PORTS * 12),
        ("*/interface/state/oper-status", PORTS),
        (".../in-octets", PORTS),
        ("qos/interfaces/interface[interface-id=Ethernet0]/.../transmit-octets", 8),
        ("interfaces/interface[name=Ethernet9]", 0),
        ("nothing", 0),
        ("/".join(["..."] * 12) + "/in-octets", PORTS),
        ("/".join(["..."] * 5000), 0),
    ],
)
def test_paths_mean_what_their_wildcards_say(stub, requested, leaves):
    """Missing keys and ``*`` match all, ``*`` any element, ``...`` any number; a path without matches gives no update."""
    notes = once(stub, request(Sub(path=path(requested))))
    assert sum(len(note.update) for note in notes) == leaves


def test_prefix_target_and_origin_come_back(stub):
    """The answer's prefix has the request's target and origin, and prefix and path together are the whole path."""
    prefix = path("interfaces", origin="openconfig", target="leaf-7")
    notes = once(stub, request(Sub(path=path("interface[name=Ethernet0]/state/name")), prefix=prefix))
    (note,) = notes
    assert (note.prefix.target, note.prefix.origin) == ("leaf-7", "openconfig")
    assert text(note.prefix, note.update[0].path) == "interfaces/interface[name=Ethernet0]/state/name"


@pytest.mark.parametrize("encoding", [gnmi_pb2.PROTO, gnmi_pb2.JSON, gnmi_pb2.JSON_IETF])
def test_values_have_the_requested_encoding(script, stub, encoding):
    """A 64-bit counter is a number in PROTO and JSON and a string in JSON_IETF, with the switch's value."""
    (note,) = once(stub, request(Sub(path=path("interfaces/interface[name=Ethernet0]/state/counters/in-octets")), encoding=encoding))
    value = note.update[0].val
    expected = int(script.at([note.timestamp]).port("rx_bytes")[0, 0])
    actual = {
        gnmi_pb2.PROTO: lambda: value.uint_val,
        gnmi_pb2.JSON: lambda: json.loads(value.json_val),
        gnmi_pb2.JSON_IETF: lambda: int(json.loads(value.json_ietf_val)) if value.json_ietf_val.startswith(b'"') else None,
    }[encoding]()
    assert actual == expected


@pytest.mark.parametrize("encoding", [gnmi_pb2.JSON, gnmi_pb2.JSON_IETF])
def test_a_device_may_send_trees(script, serve, encoding):
    """With trees a subscription in JSON gets the leaves of each object as one value; the prefix names the object."""
    with grpc.insecure_channel(f"127.0.0.1:{serve(trees=True).port}") as channel:
        notes = once(gnmi_pb2_grpc.gNMIStub(channel), request(Sub(path=path("interfaces/interface/state/counters")), encoding=encoding))
    assert [text(note.prefix) for note in notes] == [f"interfaces/interface[name={name}]/state/counters" for name in script.switch.ports]
    head = "openconfig-interfaces:" if encoding == gnmi_pb2.JSON_IETF else ""
    for index, note in enumerate(notes):
        value = note.update[0].val
        tree = json.loads(value.json_ietf_val or value.json_val)
        assert len(note.update) == 1 and not note.update[0].path.elem and len(tree) == 12
        # A leaf at the top of a tree has its module's name in RFC 7951.
        assert int(tree[f"{head}in-octets"]) == script.at([note.timestamp]).port("rx_bytes")[0, index]


SONIC = {
    "by target": (path("", target="COUNTERS_DB"), "", ""),
    "by origin": (path(""), "COUNTERS_DB/", "sonic-db"),
    "with the namespace": (path(""), "COUNTERS_DB/localhost/", "sonic-db"),
}


@pytest.mark.parametrize(("prefix", "head", "origin"), SONIC.values(), ids=SONIC)
def test_the_database_answers_in_the_form_of_the_request(script, stub, prefix, head, origin):
    """COUNTERS_DB returns an object of strings for a port, objects by name for several, and the requested path."""
    requested = [f"{head}COUNTERS/Ethernet0", f"{head}COUNTERS/Ethernet*", f"{head}COUNTERS/Ethernet0/Queues"]
    requested += [f"{head}PERIODIC_WATERMARKS/Ethernet*/PriorityGroups", f"{head}COUNTERS/Ethernet0/SAI_PORT_STAT_IF_IN_OCTETS"]
    subscriptions = [Sub(path=path(one, origin=origin)) for one in requested]
    notes = once(stub, request(*subscriptions, prefix=prefix, encoding=gnmi_pb2.JSON_IETF))
    assert [text(note.update[0].path) for note in notes] == requested
    assert [note.update[0].path.origin for note in notes] == [origin] * 5
    state = script.at([notes[0].timestamp])
    one, every, queues, groups = (json.loads(note.update[0].val.json_ietf_val) for note in notes[:4])
    assert one["SAI_PORT_STAT_PFC_3_TX_PAUSE_DURATION_US"] == str(state.queue("pfc_tx_pause_us")[0, 0, 3])
    assert one["SAI_PORT_STAT_IF_IN_FEC_CODEWORD_ERRORS_S2"] == str(state.fec_bins[0, 0, 2])
    assert {name: fields["SAI_PORT_STAT_IF_OUT_OCTETS"] for name, fields in every.items()} == {
        name: str(value) for name, value in zip(script.switch.ports, state.port("tx_bytes")[0], strict=True)
    }
    assert {name: fields["SAI_QUEUE_STAT_BYTES"] for name, fields in queues.items()} == {
        f"Ethernet0:{number}": str(state.queue("bytes")[0, 0, number]) for number in range(8)
    }
    headroom = "SAI_INGRESS_PRIORITY_GROUP_STAT_XOFF_ROOM_WATERMARK_BYTES"
    assert groups["Ethernet8:3"][headroom] == str(state.group("headroom_watermark_bytes")[0, 1, 3])
    assert notes[4].update[0].val.string_val == str(state.port("rx_bytes")[0, 0])


def test_samples_come_at_their_interval(stub):
    """Ten samples at 50 ms are 50 ms apart on the device's clock, within the machine's load."""
    wanted = Sub(path=path("system/state/hostname"), mode=gnmi_pb2.SAMPLE, sample_interval=50_000_000)
    got = until(stub, request(wanted, mode=List.STREAM), lambda got: len(got) == 12)
    times = [message.update.timestamp for message in got if not message.sync_response]
    assert got[1].sync_response
    assert times[-1] - times[0] >= 10 * 45_000_000
    assert times == sorted(set(times))


def test_what_has_not_changed_is_left_out_until_the_heartbeat(stub):
    """With suppress_redundant a constant leaf is sent once, and again at each heartbeat."""
    name = path("interfaces/interface[name=Ethernet0]/state/name")
    octets = path("interfaces/interface[name=Ethernet0]/state/counters/in-octets")
    constant = Sub(path=name, mode=gnmi_pb2.SAMPLE, sample_interval=20_000_000, suppress_redundant=True, heartbeat_interval=300_000_000)
    moving = Sub(path=octets, mode=gnmi_pb2.SAMPLE, sample_interval=20_000_000)

    def count(got: list, leaf: str) -> int:
        return sum(update.path.elem[-1].name == leaf for message in got for update in message.update.update)

    got = until(stub, request(constant, moving, mode=List.STREAM), lambda got: count(got, "name") == 3)
    times = [m.update.timestamp for m in got for u in m.update.update if u.path.elem[-1].name == "name"]
    assert min(times[1] - times[0], times[2] - times[1]) >= 290_000_000
    assert count(got, "in-octets") > count(got, "name")


def test_changes_are_sent_and_missing_values_are_deleted(script, stub):
    """ON_CHANGE sends a link's state when it changes; its neighbour is deleted while it is down and sent again after."""
    last = script.switch.ports[-1]
    watches = [
        Sub(path=path(f"interfaces/interface[name={last}]/state/oper-status"), mode=gnmi_pb2.ON_CHANGE),
        Sub(path=path(f"lldp/interfaces/interface[name={last}]"), mode=gnmi_pb2.ON_CHANGE),
    ]

    def neighbours(got: list) -> list[gnmi_pb2.Notification]:
        return [m.update for m in got if m.update.atomic]

    def deleted(got: list) -> list[gnmi_pb2.Path]:
        return [one for m in got for one in m.update.delete]

    got = until(stub, request(*watches, mode=List.STREAM), lambda got: len(deleted(got)) >= 2 and neighbours(got[-1:]) != [])
    states = [m.update.update[0].val.string_val for m in got if text(m.update.prefix).startswith("interfaces/") and m.update.update]
    assert all(one != other for one, other in itertools.pairwise(states))
    assert {"UP", "DOWN"} == set(states)
    assert {text(one) for one in deleted(got)} == {f"lldp/interfaces/interface[name={last}]/neighbors/neighbor[id=1]"}
    for note in neighbours(got):
        assert text(note.prefix).endswith("neighbor[id=1]/state")
        values = {update.path.elem[0].name: update.val.string_val for update in note.update}
        assert (values["system-name"], values["port-id"]) == script.switch.peers[-1]
        assert set(values) == {"id", "system-name", "port-id", "port-description", "chassis-id"}


def test_updates_only_leaves_out_the_beginning(stub):
    """With updates_only the first message is sync_response."""
    wanted = Sub(path=path("interfaces/interface/state/counters"), mode=gnmi_pb2.SAMPLE, sample_interval=20_000_000)
    got = until(stub, request(wanted, mode=List.STREAM, updates_only=True), lambda got: len(got) == 2)
    assert [message.sync_response for message in got] == [True, False]


def test_each_poll_sends_everything_again(stub):
    """A POLL subscription answers at once and after each poll, ending with sync_response; anything else is refused."""
    wanted = request(Sub(path=path("interfaces/interface/state/oper-status")), mode=List.POLL)
    poll = gnmi_pb2.SubscribeRequest(poll=gnmi_pb2.Poll())
    got = list(stub.Subscribe(iter([wanted, poll, poll]), timeout=LIMIT_S))
    assert [message.sync_response for message in got] == ([False] * PORTS + [True]) * 3
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Subscribe(iter([wanted, wanted]), timeout=LIMIT_S))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_not_offered_is_refused(stub):
    """An unsupported encoding or unknown path is refused with the code of the specification."""
    for call, code in (
        (lambda: stub.Get(gnmi_pb2.GetRequest(path=[path("interfaces")], encoding=gnmi_pb2.ASCII)), grpc.StatusCode.UNIMPLEMENTED),
        (lambda: stub.Get(gnmi_pb2.GetRequest(path=[path("nothing")], encoding=gnmi_pb2.PROTO)), grpc.StatusCode.NOT_FOUND),
        (lambda: list(stub.Subscribe(iter([gnmi_pb2.SubscribeRequest(poll=gnmi_pb2.Poll())]))), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: stub.Set(gnmi_pb2.SetRequest()), grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == code


def test_a_server_comes_back_on_its_port(serve):
    """Stopping ends the streams with UNAVAILABLE; a restarted server has the same port."""
    server = serve()
    port = server.port
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = gnmi_pb2_grpc.gNMIStub(channel)
        call = stub.Subscribe(iter([request(Sub(path=path("system")), mode=List.STREAM)]), timeout=LIMIT_S)
        assert next(call).update.timestamp
        server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        server.start()
        assert server.port == port
        assert stub.Capabilities(gnmi_pb2.CapabilityRequest(), timeout=LIMIT_S, wait_for_ready=True).supported_models


def test_a_port_in_use_is_reported(serve, script):
    """A second server on the same port fails in one sentence."""
    with pytest.raises(ServiceError, match=r"cannot listen on 127\.0\.0\.1:"):
        Server(script, ServerConfig(port=serve().port), SystemClock()).start()
