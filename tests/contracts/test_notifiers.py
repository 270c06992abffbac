"""What every notifier keeps: it starts nothing by being made, leaks no secret, and never raises because of a receiver."""

import base64
import contextlib
import http.server
import json
import logging
import threading
from dataclasses import fields, is_dataclass, replace

import pytest

from weft.analytics.notify import NOTIFIERS, NotifyConfig, endpoints_of
from weft.analytics.notify.base import Delivery, Group, Notice, Outcome, Result
from weft.analytics.notify.sender import Sender
from weft.pipeline.clock import ManualClock
from weft.pipeline.errors import ConfigError, WeftError

TOKEN = "T0KEN-that-nobody-may-see"
KEY = base64.b64encode(b"K3Y-that-nobody-may-see-32-bytes").decode()
DELIVERY = Delivery(1, "ops", "msg_1", "{}")
GROUP = Group("{}:{}", {"device": "a"}, tuple(Notice(f"{n:016x}", {"device": "a"}, {"value": "1"}, n, None, "alerts") for n in range(5)))

pytestmark = pytest.mark.parametrize("name", NOTIFIERS)


@contextlib.contextmanager
def receiver(status, headers=()):
    """Run an HTTP server that answers every request alike; yields its address and the requests it got."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(f"{TOKEN} {KEY}".encode())

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{TOKEN}", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def configured(name, url, tmp_path, **options):
    """Return a config of that kind whose address and key must not be seen."""
    (tmp_path / "key").write_text(f"whsec_{KEY}\n")
    return replace(NOTIFIERS[name].config(), name="ops", url=url, secret_file=str(tmp_path / "key"), timeout_s=5.0, **options)


def made(name, config):
    notifier = NOTIFIERS[name].build(config, ManualClock())
    notifier.start()
    return notifier


def clean(*things):
    text = " ".join(f"{thing} {thing!r}" for thing in things)
    assert TOKEN not in text and KEY not in text


@pytest.mark.parametrize("status", [200, 302, 400, 410, 429, 500])
def test_no_secret_leaves_by_config_notifier_result_or_log(name, status, tmp_path, caplog):
    """Address and key appear in no text that Weft makes, whatever the receiver answers, even when it answers with them."""
    caplog.set_level(logging.DEBUG)
    with receiver(status, [("Location", f"http://127.0.0.1:1/{TOKEN}")]) as (url, got):
        config = configured(name, url, tmp_path)
        notifier = made(name, config)
        result = notifier.deliver(DELIVERY)
    assert isinstance(result, Result) and len(got) == 1
    clean(config, notifier, result, caplog.text, vars(notifier).get("_config"))


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://host/{TOKEN}",
        f"http://user:{TOKEN}@host/",
        f"http://[{TOKEN}/",
        f"http://host:{TOKEN}/",
        f"http:///{TOKEN}",
        TOKEN,
        f"http://host/ {TOKEN}",
        f"http://host/{TOKEN}\r\nX-Evil: 1",
        f"http://host/#{TOKEN}",
        f"http://höst/{TOKEN}",
    ],
)
def test_an_address_that_cannot_be_used_is_told_without_repeating_it(name, url, tmp_path):
    """A wrong address is an error of the configuration, at the start, that does not show the address."""
    with pytest.raises(ConfigError) as caught:
        made(name, configured(name, url, tmp_path))
    error: BaseException | None = caught.value
    while error is not None:
        clean(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_missing_file_and_a_doubtful_limit_are_told(name, tmp_path):
    """Files that are not there and limits that make no sense are errors of the configuration."""
    good = configured(name, "http://127.0.0.1:1/", tmp_path)
    for wrong in (
        {"secret_file": str(tmp_path / "none")},
        {"url": "", "url_file": str(tmp_path / "none")},
        {"timeout_s": 0.0},
        {"url": ""},
    ):
        with pytest.raises(WeftError):
            made(name, replace(good, **wrong))
    with pytest.raises(ConfigError):
        made(name, replace(good, allow=("10.0.0.0/33",)))


def test_an_address_can_come_from_a_file(name, tmp_path):
    """Where the address is the secret, it stands in a file of its own."""
    with receiver(200) as (url, got):
        (tmp_path / "url").write_text(url + "\n")
        config = replace(configured(name, "", tmp_path), url_file=str(tmp_path / "url"))
        assert made(name, config).deliver(DELIVERY).outcome is Outcome.DELIVERED
    assert len(got) == 1


def test_being_made_does_nothing(name, tmp_path):
    """A notifier reads, resolves and connects to nothing until it is started, and sends nothing before."""
    before = threading.active_count()
    notifier = NOTIFIERS[name].build(configured(name, "http://127.0.0.1:1/", tmp_path, allow=()), ManualClock())
    assert notifier.deliver(DELIVERY).outcome is Outcome.RETRY
    assert threading.active_count() == before


@pytest.mark.parametrize(("status", "outcome"), [(200, "DELIVERED"), (404, "REFUSED"), (410, "GONE"), (429, "RETRY"), (503, "RETRY")])
def test_the_table_of_outcomes_holds(name, status, outcome, tmp_path):
    """All notifiers read a status code alike."""
    with receiver(status) as (url, _):
        assert made(name, configured(name, url, tmp_path)).deliver(DELIVERY).outcome is Outcome[outcome]


def test_the_payload_is_bounded_and_counts_what_it_leaves_out(name):
    """A group larger than the limit is cut, and says so."""
    message = json.loads(NOTIFIERS[name].render(GROUP, "ops", 2, "http://weft"))
    assert (len(message["alerts"]), message["truncatedAlerts"]) == (2, 3)


def test_the_config_is_frozen_and_has_what_the_outbox_reads(name):
    """The section of a kind is a frozen dataclass with the fields that all kinds have, and belongs to [notify]."""
    kind = NOTIFIERS[name]
    assert is_dataclass(kind.config) and kind.config.__dataclass_params__.frozen
    assert {"name", "send_resolved", "timeout_s", "max_alerts"} <= {field.name for field in fields(kind.config)}
    assert [endpoint.kind for endpoint in endpoints_of(NotifyConfig(**{name: (kind.config(),)}))] == [kind]


def test_a_defect_in_a_notifier_is_contained(name, caplog):
    """A notifier that raises costs one attempt, not the sender, and the text of its error is not logged."""

    class Broken:
        def start(self):
            pass

        def deliver(self, delivery):
            raise RuntimeError(TOKEN)

    sender = Sender({"ops": Broken()})
    sender.start()
    try:
        sender.submit([DELIVERY])
        results = []
        for _ in range(500):
            results += sender.results()
            if results:
                break
            threading.Event().wait(0.01)
    finally:
        sender.stop()
    assert [(result.outcome, result.certain) for result in results] == [(Outcome.RETRY, False)]
    clean(results, caplog.text)
