"""The webhook: its payload is Alertmanager's, its signature the standard's, and no behaviour of a receiver does harm."""

import base64
import hashlib
import hmac
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import threading

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.analytics.notify import guard
from weft.analytics.notify.base import Delivery, Group, Notice, Outcome
from weft.analytics.notify.payload import render, rfc3339
from weft.analytics.notify.sender import NotificationSender
from weft.analytics.notify.signature import parse_secrets, sign
from weft.analytics.notify.webhook import Webhook, WebhookConfig
from weft.pipeline.clock import ManualClock, SystemClock
from weft.pipeline.errors import ConfigError

# Written from the structures Data, Alert and Message of prometheus/alertmanager (template/template.go,
# notify/webhook/webhook.go): every field is always present, label and annotation values are strings.
KV = {"type": "object", "additionalProperties": {"type": "string"}}
STATUS = {"enum": ["firing", "resolved"]}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$"}
ALERT = {
    "type": "object",
    "properties": {
        "status": STATUS,
        "labels": KV,
        "annotations": KV,
        "startsAt": TIME,
        "endsAt": TIME,
        "generatorURL": {"type": "string"},
        "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    },
    "required": ["status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint"],
    "additionalProperties": False,
}
MESSAGE = {
    "type": "object",
    "properties": {
        "version": {"const": "4"},
        "groupKey": {"type": "string", "minLength": 1},
        "truncatedAlerts": {"type": "integer", "minimum": 0},
        "status": STATUS,
        "receiver": {"type": "string"},
        "groupLabels": KV,
        "commonLabels": KV,
        "commonAnnotations": KV,
        "externalURL": {"type": "string"},
        "alerts": {"type": "array", "items": ALERT},
    },
    "required": [
        "version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels",
        "commonLabels", "commonAnnotations", "externalURL", "alerts",
    ],
    "additionalProperties": False,
}  # fmt: skip

WORDS = st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=20), max_size=4)
NS = st.integers(0, 4_000_000_000 * 1_000_000_000)
NOTICES = st.builds(
    Notice, st.integers(0, 2**64 - 1).map(lambda n: f"{n:016x}"), WORDS, WORDS, NS, st.none() | NS, st.sampled_from(["", "bursts?device=a"])
)

DELIVERY = Delivery(7, "ops", "msg_0123456789abcdef", '{"version":"4","größe":1}')


def webhook(url, clock=None, **options):
    notifier = Webhook(
        WebhookConfig(name="ops", url=url, timeout_s=options.pop("timeout_s", 5.0), **options),
        clock or SystemClock(),
        "[[analyze.notify.webhook]] ops",
    )
    notifier.start()
    return notifier


# -- payload ---------------------------------------------------------------------------------------------------------


@given(st.lists(NOTICES, max_size=6).map(tuple), WORDS, st.integers(0, 4))
def test_any_group_is_a_valid_alertmanager_message(notices, labels, limit):
    """For any alerts, the payload fits Alertmanager's version 4, and omitted alerts are counted."""
    message = json.loads(render(Group("{}:{}", labels, notices), "ops", limit, "http://weft:8501/"))
    jsonschema.validate(message, MESSAGE)
    assert len(message["alerts"]) + message["truncatedAlerts"] == len(notices)
    assert message["status"] == ("firing" if any(notice.ends_at_ns is None for notice in notices) else "resolved")
    for name, value in message["commonLabels"].items():
        assert all(alert["labels"].get(name) == value for alert in message["alerts"])


def test_the_payload_says_what_a_receiver_needs():
    """Values, links and times are in the fields that Alertmanager's receivers read."""
    firing = Notice(
        "00000000000000aa", {"alertname": "hot", "port": "1"}, {"value": "0.5"}, 1_640_995_201_500_000_000, None, "bursts?port=1"
    )
    ended = Notice(
        "00000000000000bb", {"alertname": "hot", "port": "2"}, {"value": "0.5"}, 1_640_995_200_000_000_000, 1_640_995_260_000_000_001
    )
    message = json.loads(render(Group("k", {"alertname": "hot"}, (firing, ended)), "ops", 0, "http://weft:8501/"))
    assert [(a["status"], a["startsAt"], a["endsAt"], a["generatorURL"]) for a in message["alerts"]] == [
        ("firing", "2022-01-01T00:00:01.5Z", "0001-01-01T00:00:00Z", "http://weft:8501/bursts?port=1"),
        ("resolved", "2022-01-01T00:00:00Z", "2022-01-01T00:01:00.000000001Z", "http://weft:8501"),
    ]
    assert message["commonLabels"] == {"alertname": "hot"} and message["commonAnnotations"] == {"value": "0.5"}


def test_times_are_rfc3339_to_the_nanosecond():
    """A time keeps its precision in the payload."""
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_640_995_200_000_000_120) == "2022-01-01T00:00:00.00000012Z"


# -- signature -------------------------------------------------------------------------------------------------------

# The reference vector of the Standard Webhooks libraries; in two parts, because secret scanners would report it.
VECTOR_SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_signature_is_the_published_one():
    """Our signature of the published message is the published signature; two secrets give two."""
    secrets = parse_secrets(f"# old\n{VECTOR_SECRET}\n\nwhsec_{base64.b64encode(b'x' * 32).decode()}\n", "file")
    signed = sign(secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}').split(" ")
    assert signed[0] == VECTOR_SIGNATURE and len(signed) == 2 and signed[1].startswith("v1,")


@pytest.mark.parametrize(
    "text", ["", "# none\n", "whsec_short", "whsec_" + "?" * 40, base64.b64encode(b"x" * 32).decode(), "whsec_" + "QUFB" * 40]
)
def test_a_secret_that_is_none_is_refused_without_being_shown(text):
    """A file without a valid secret is a configuration error that does not repeat the content."""
    with pytest.raises(ConfigError) as caught:
        parse_secrets(text, "secrets.txt")
    assert not text.strip("# \n") or text.strip() not in str(caught.value)


def test_a_receiver_can_verify_what_it_gets(receivers, tmp_path):
    """Headers and body follow the standard and verify with the secret and the standard library alone."""
    receiver = receivers()
    secret = b"k" * 24
    (tmp_path / "secret").write_text("whsec_" + base64.b64encode(secret).decode())
    clock = ManualClock()
    notifier = webhook(f"{receiver.base}/hook?room=a%20b", clock, secret_file=str(tmp_path / "secret"))
    assert notifier.deliver(DELIVERY).outcome is Outcome.DELIVERED
    ((path, headers, body),) = receiver.requests
    assert (path, headers["content-type"], headers["webhook-id"]) == ("/hook?room=a%20b", "application/json", DELIVERY.webhook_id)
    assert (headers["webhook-timestamp"], headers["host"]) == ("1640995200", f"localhost:{receiver.port}")
    expected = hmac.new(secret, b"msg_0123456789abcdef.1640995200." + body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
    assert body.decode() == DELIVERY.payload


# -- what receivers do -----------------------------------------------------------------------------------------------


STATUSES = {
    "DELIVERED": (200, 202, 204),
    "REFUSED": (301, 302, 307, 400, 401, 404, 422),
    "GONE": (410,),
    "RETRY": (429, 500, 503, 504),
}


@pytest.mark.parametrize(("status", "outcome"), [(status, outcome) for outcome, statuses in STATUSES.items() for status in statuses])
def test_each_status_has_its_outcome(receivers, status, outcome):
    """2xx is delivered, 5xx and 429 are tried again, 410 ends the endpoint, everything else is refused for good."""
    receiver = receivers()
    receiver.answers = [status]
    result = webhook(receiver.base).deliver(DELIVERY)
    assert (result.outcome, result.certain) == (Outcome[outcome], True)
    assert "body" not in result.error and (status < 300 or str(status) in result.error)


def test_a_redirect_is_not_followed(receivers):
    """Redirects are not followed."""
    first, second = receivers(), receivers()
    first.answers = [(307, {"Location": second.base})]
    assert webhook(first.base).deliver(DELIVERY).outcome is Outcome.REFUSED
    assert (len(first.requests), len(second.requests)) == (1, 0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("99999999999", 3600.0),
        ("Sat, 01 Jan 2022 00:01:30 GMT", 90.0),
        ("Fri, 31 Dec 2021 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_is_honoured_within_bounds(receivers, header, seconds):
    """``Retry-After`` is honoured as seconds or as a date, up to an hour; invalid values are ignored."""
    receiver = receivers()
    receiver.answers = [(503, {"Retry-After": header})]
    assert webhook(receiver.base, ManualClock()).deliver(DELIVERY).retry_after_s == seconds


def drip(handler):
    """Send an endless status line byte by byte, each byte within the time limit of a single read."""
    try:
        for _ in range(100):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            if threading.Event().wait(0.05):
                break
    except OSError:
        pass


def silence(handler):
    threading.Event().wait(3)


@pytest.mark.parametrize("behaviour", [drip, silence])
def test_a_slow_receiver_is_cut_off(receivers, behaviour):
    """The time limit holds for the whole attempt; the outcome is a retry that may have been delivered."""
    receiver = receivers()
    receiver.answers = [behaviour]
    result = webhook(receiver.base, timeout_s=0.4).deliver(DELIVERY)
    assert (result.outcome, result.certain, result.error) == (Outcome.RETRY, False, "no answer in time")


def garbage(handler):
    handler.wfile.write(b"\x00\xff not http\r\n\r\n")


def endless_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(1000)))


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("behaviour", [garbage, endless_headers, hang_up])
def test_a_broken_answer_is_an_uncertain_retry(receivers, behaviour):
    """An answer that is not HTTP is retried and raises nothing."""
    receiver = receivers()
    receiver.answers = [behaviour]
    result = webhook(receiver.base).deliver(DELIVERY)
    assert (result.outcome, result.certain) == (Outcome.RETRY, False)


def test_a_huge_body_is_not_read(receivers):
    """A success counts even with a very long answer."""
    receiver = receivers()

    def huge(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"x" * 50_000_000)

    receiver.answers = [huge]
    assert webhook(receiver.base).deliver(DELIVERY).outcome is Outcome.DELIVERED


def test_nobody_listening_is_a_certain_retry():
    """A refused connection is tried again, and is known not to have been delivered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = webhook(f"http://127.0.0.1:{port}/").deliver(DELIVERY)
    assert (result.outcome, result.certain, result.error) == (Outcome.RETRY, True, "no connection")


# -- where a webhook may go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "allow", "expected"),
    [
        ("127.0.0.1", (), True),
        ("10.1.2.3", (), True),
        ("::1", (), True),
        ("93.184.216.34", (), True),
        ("169.254.169.254", (), False),
        ("169.254.169.254", ("0.0.0.0/0",), False),
        ("fe80::1", (), False),
        ("fd00:ec2::254", (), False),
        ("100.100.100.200", (), False),
        ("168.63.129.16", (), False),
        ("::ffff:169.254.169.254", (), False),
        ("64:ff9b::a9fe:a9fe", (), False),
        ("2002:a9fe:a9fe::", (), False),
        ("0.0.0.0", (), False),
        ("224.0.0.1", (), False),
        ("255.255.255.255", (), False),
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        ("127.0.0.1", ("10.0.0.0/8",), False),
        ("10.1.2.3", ("fd00::/8",), False),
    ],
)
def test_addresses_are_judged(address, allow, expected):
    """Metadata and link-local addresses are never reached, in whatever form they are written; a list only narrows."""
    assert guard.permitted(ipaddress.ip_address(address), guard.parse_networks(allow, "x")) is expected


def test_one_bad_address_spoils_a_name(monkeypatch):
    """A name that points inside and outside at once is refused, and resolved only once."""
    calls = []

    def resolver(host, port, **_):
        calls.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("93.184.216.34", "169.254.169.254")]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    result = webhook("http://rebind.example/").deliver(DELIVERY)
    assert (result.outcome, result.error, calls) == (Outcome.REFUSED, "the address is not permitted", ["rebind.example"])


def test_the_connection_goes_to_the_judged_address(receivers, monkeypatch):
    """The name is resolved once: the checked address is the connected one."""
    receiver = receivers()
    real, lookups = socket.getaddrinfo, []

    def resolver(host, port, *rest, **named):
        lookups.append(host)
        return real("127.0.0.1" if host == "judged.example" else host, port, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    assert webhook(f"http://judged.example:{receiver.port}/").deliver(DELIVERY).outcome is Outcome.DELIVERED
    assert lookups.count("judged.example") == 1
    assert receiver.requests[0][1]["host"] == f"judged.example:{receiver.port}"


def test_an_allow_list_narrows(receivers):
    """An endpoint with a list of networks does not leave them, and nothing is sent."""
    receiver = receivers()
    assert webhook(receiver.base, allow=("10.0.0.0/8",)).deliver(DELIVERY).outcome is Outcome.REFUSED
    assert receiver.requests == []


@pytest.fixture
def certificate(tmp_path):
    """A certificate for localhost and the file of it; skipped where the machine has no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    names = {"-keyout": tmp_path / "key.pem", "-out": tmp_path / "cert.pem"}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", *(str(part) for pair in names.items() for part in pair)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(names["-out"], names["-keyout"])
    return context, names["-out"]


def test_tls_is_verified(receivers, certificate, monkeypatch):
    """Over TLS a receiver gets nothing until its certificate is trusted and names it."""
    context, path = certificate
    receiver = receivers(context)
    assert webhook(receiver.base).deliver(DELIVERY).error == "the certificate is not accepted"
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    assert webhook(receiver.base.replace("localhost", "127.0.0.1")).deliver(DELIVERY).error == "the certificate is not accepted"
    assert receiver.requests == []
    assert webhook(receiver.base).deliver(DELIVERY).outcome is Outcome.DELIVERED


# -- the sender ------------------------------------------------------------------------------------------------------


def collected(sender, count):
    """Return the first results of the sender, waiting no longer than a bound."""
    results, clock = [], SystemClock()
    for _ in range(500):
        results += sender.results()
        if len(results) >= count:
            break
        clock.wait(0.02)
    return results


def test_a_slow_endpoint_delays_no_other(receivers):
    """Each endpoint has its own thread: one that hangs does not delay the others, and a full one reports it."""
    slow, quick = receivers(), receivers()
    slow.answers = [silence]
    sender = NotificationSender({"slow": webhook(slow.base, timeout_s=2.0), "quick": webhook(quick.base)})
    sender.start()
    try:
        sender.submit([Delivery(1, "slow", "msg_1", "{}"), Delivery(2, "quick", "msg_2", "{}"), Delivery(3, "unknown", "msg_3", "{}")])
        first = {result.id: result.outcome for result in collected(sender, 2)}
        assert first == {2: Outcome.DELIVERED, 3: Outcome.RETRY}
    finally:
        sender.stop()
    sender.submit([Delivery(4, "quick", "msg_4", "{}")])
    late = {result.id: (result.outcome, result.certain) for result in sender.results()}
    assert late[4] == (Outcome.RETRY, True) and late.get(1) == (Outcome.RETRY, False)
    assert len(quick.requests) == 1
