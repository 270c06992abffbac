"""The contract of every notifier: building it starts nothing, it leaks no secret, and no receiver makes it raise."""

import base64
import contextlib
import http.server
import json
import logging
import re
import threading
from dataclasses import dataclass, field, fields, is_dataclass, replace

import pytest

from weft.analytics.notify import NOTIFIERS, NotifyConfig, build_notifiers, endpoints_of
from weft.analytics.notify.base import Delivery, DeliveryResult, Group, Notice, Outcome
from weft.analytics.notify.sender import NotificationSender
from weft.analytics.service import AnalyzeConfig
from weft.pipeline.clock import ManualClock
from weft.pipeline.config import dump, load
from weft.pipeline.errors import ConfigError, WeftError

TOKEN = "T0KEN-that-nobody-may-see"
KEY = base64.b64encode(b"K3Y-that-nobody-may-see-32-bytes").decode()
DELIVERY = Delivery(1, "ops", "msg_1", "{}")
GROUP = Group(
    "{}:{}", {"device": "a"}, tuple(Notice(n, {"alertname": n}, {"summary": n}, 0, None, "bursts") for n in ("aa", "bb", "cc", "dd", "ee"))
)

pytestmark = pytest.mark.parametrize("name", NOTIFIERS)


@dataclass(frozen=True)
class Whole:
    """The sections of a configuration file that hold notifiers."""

    analyze: AnalyzeConfig = field(default_factory=AnalyzeConfig)


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
    """Return a config of that kind, with a key where the kind signs; neither address nor key may appear anywhere."""
    (tmp_path / "key").write_text(f"whsec_{KEY}\n")
    kind = NOTIFIERS[name].config
    key = {"secret_file": str(tmp_path / "key")} if "secret_file" in {field.name for field in fields(kind)} else {}
    return replace(kind(), name="ops", url=url, timeout_s=5.0, **key, **options)


def built(name, config):
    (endpoint,) = endpoints_of(NotifyConfig(**{name: (config,)}))
    return build_notifiers((endpoint,), ManualClock())["ops"]


def made(name, config):
    notifier = built(name, config)
    notifier.start()
    return notifier


def clean(*things):
    text = " ".join(f"{thing} {thing!r}" for thing in things)
    assert TOKEN not in text and KEY not in text


@pytest.mark.parametrize("status", [200, 302, 400, 410, 429, 500])
def test_no_secret_leaves_by_config_notifier_result_or_log(name, status, tmp_path, caplog):
    """Address and key appear in no text of Weft, even when the receiver answers with them."""
    caplog.set_level(logging.DEBUG)
    with receiver(status, [("Location", f"http://127.0.0.1:1/{TOKEN}")]) as (url, got):
        config = configured(name, url, tmp_path)
        notifier = made(name, config)
        result = notifier.deliver(DELIVERY)
    assert isinstance(result, DeliveryResult) and len(got) == 1
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
def test_a_wrong_address_is_refused_without_repeating_it(name, url, tmp_path):
    """A wrong address is a configuration error at the start that names its section and does not show the address."""
    with pytest.raises(ConfigError) as caught:
        made(name, configured(name, url, tmp_path))
    assert f"[[analyze.notify.{name}]] ops" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        clean(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_missing_file_and_an_invalid_limit_are_refused(name, tmp_path):
    """Missing files and invalid limits are configuration errors that name the section."""
    good = configured(name, "http://127.0.0.1:1/", tmp_path)
    key = [{"secret_file": str(tmp_path / "none")}] if hasattr(good, "secret_file") else []
    for wrong in (*key, {"url": "", "url_file": str(tmp_path / "none")}, {"timeout_s": 0.0}, {"url": ""}):
        with pytest.raises(WeftError, match=rf"\[\[analyze\.notify\.{name}\]\] ops"):
            made(name, replace(good, **wrong))
    with pytest.raises(ConfigError):
        made(name, replace(good, allow=("10.0.0.0/33",)))


def test_an_address_can_come_from_a_file(name, tmp_path):
    """The address can be in a file of its own."""
    with receiver(200) as (url, got):
        (tmp_path / "url").write_text(url + "\n")
        config = replace(configured(name, "", tmp_path), url_file=str(tmp_path / "url"))
        assert made(name, config).deliver(DELIVERY).outcome is Outcome.DELIVERED
    assert len(got) == 1


def test_being_made_does_nothing(name, tmp_path):
    """A notifier reads, resolves and connects to nothing until it is started, and sends nothing before."""
    before = threading.active_count()
    notifier = built(name, configured(name, "http://127.0.0.1:1/", tmp_path, allow=()))
    assert notifier.deliver(DELIVERY).outcome is Outcome.RETRY
    assert threading.active_count() == before


@pytest.mark.parametrize(("status", "outcome"), [(200, "DELIVERED"), (404, "REFUSED"), (410, "GONE"), (429, "RETRY"), (503, "RETRY")])
def test_the_table_of_outcomes_holds(name, status, outcome, tmp_path):
    """All notifiers treat a status code alike."""
    with receiver(status) as (url, _):
        assert made(name, configured(name, url, tmp_path)).deliver(DELIVERY).outcome is Outcome[outcome]


def test_the_payload_is_bounded_and_counts_what_it_leaves_out(name):
    """A group larger than the limit shows its first alerts and the number of the others."""
    shown, whole = (NOTIFIERS[name].render(GROUP, "ops", limit, "http://weft") for limit in (2, 5))
    assert json.loads(shown) and [n for n in ("aa", "bb", "cc", "dd", "ee") if n in shown] == ["aa", "bb"]
    assert re.search(r"\b3\b", shown) and not re.search(r"\b3\b", whole)


@pytest.mark.parametrize("address", [f"https://host/{TOKEN}", f"https://host/?key={TOKEN}", f"https://user:{TOKEN}@host/", f"{TOKEN}"])
def test_printed_settings_and_errors_of_the_configuration_mask_the_address(name, address, tmp_path):
    """No printed configuration and no error about its values shows an address, wherever the secret is in it."""
    section = f"analyze.notify.{name}"
    file = tmp_path / "weft.toml"
    file.write_text(f'[[{section}]]\nname = "ops"\nurl = "{address}"\n')
    printed = "\n".join(dump(load(Whole, file, {})))
    clean(printed)
    assert 'name = "ops", url = "********"' in printed
    for wrong in (
        f'[{section}]\nurl = "{address}"\n',
        f'[[{section}]]\nurl = ["{address}"]\n',
        f'{section} = [{{url = {{ a = "{address}" }} }}]\n',
    ):
        file.write_text(wrong)
        with pytest.raises(ConfigError) as caught:
            load(Whole, file, {})
        clean(caught.value)


def test_the_config_is_frozen_and_has_what_the_outbox_reads(name):
    """The section of a kind is a frozen dataclass with the fields that all kinds have, and [analyze.notify] accepts it."""
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

    sender = NotificationSender({"ops": Broken()})
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
