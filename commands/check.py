"""``weft check``: checks the configuration, the rules and the machine; one line per result, with a hint where it is not ok."""

import json
import os
import shutil
import socket
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from ..pipeline import config as configuration
from ..pipeline.bus import open_bus
from ..pipeline.clock import NS_PER_S, SystemClock
from ..pipeline.errors import ServiceError, WeftError
from .settings import everything

FREE_BYTES_MIN = 1024**3
PUBLISH_AGE_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line: what was checked, its state (ok, warn, fail), and a hint where it is not ok."""

    what: str
    state: str
    text: str
    hint: str = ""


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--dump", action="store_true", help="print the effective configuration as TOML and stop")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="format of the findings (default: text)")


def check(chosen: Namespace) -> int:
    """Run all checks; return 1 if any fails."""
    settings = everything(chosen)
    if chosen.dump:
        print("\n".join(configuration.dump(settings)).strip())
        return 0
    findings = [
        CheckResult("configuration", "ok", str(chosen.config) if chosen.config else "defaults and environment"),
        _rules(settings),
        *_collectors(settings),
        _data(chosen.data),
        _bus(settings, chosen.data),
        _store(chosen.data),
        _interfaces(),
        _privileges(),
        _port(settings),
    ]
    if chosen.format == "json":
        print(json.dumps([{"what": f.what, "state": f.state, "text": f.text, "mend": f.hint} for f in findings]))
    else:
        for finding in findings:
            print(f"{finding.state:<5} {finding.what:<17} {finding.text}{f'; {finding.hint}' if finding.hint else ''}")
    return int(any(finding.state == "fail" for finding in findings))


def _rules(settings) -> CheckResult:
    from ..analytics.alerts.check import run_tests
    from ..analytics.alerts.rules import DEFAULT_RULES, load_rules
    from ..analytics.notify import build_notifiers, endpoints_of

    try:
        rules = load_rules(settings.analyze.alerts)
        endpoints = endpoints_of(settings.analyze.notify)
        for notifier in build_notifiers(endpoints, SystemClock()).values():
            notifier.start()
    except WeftError as error:
        return CheckResult("alert rules", "fail", str(error))
    # The tests of the default rules passed before they were released.
    failures = [failure for rule in rules if DEFAULT_RULES not in Path(rule.path).parents for failure in run_tests(rule)]
    if failures:
        return CheckResult("alert rules", "fail", "; ".join(failures), "correct the rule or its test")
    receivers = f"{len(endpoints)} receivers" if endpoints else "no receiver, so alerts stay in the store"
    return CheckResult("alert rules", "ok", f"{len(rules)} rules, {receivers}")


def _collectors(settings) -> list[CheckResult]:
    """Start and stop each configured collector: only then do missing files, interfaces and addresses show."""
    from ..collectors.service import configured

    return [_collector(f"collect.{name}", live) for name, live in configured(settings.collect, SystemClock()).items()]


def _collector(what: str, live) -> CheckResult:
    try:
        live.start()
    except ServiceError as error:
        # A running Weft may have the address, and the user of the service the permission.
        return CheckResult(what, "warn", str(error))
    except WeftError as error:
        return CheckResult(what, "fail", str(error))
    finally:
        live.stop()
    return CheckResult(what, "ok", "starts")


def _data(data: Path) -> CheckResult:
    folder = data if data.exists() else data.absolute().parent
    if not os.access(folder, os.R_OK):
        return CheckResult("data folder", "fail", f"{data} cannot be read", "choose another with --data")
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES_MIN:
        return CheckResult(
            "data folder",
            "warn",
            f"{free / 1e9:.1f} GB free under {data}",
            "free space, or lower bus.retention_bytes and analyze.ring.bytes_max",
        )
    writable = "" if os.access(folder, os.W_OK) else ", read-only here"
    return CheckResult("data folder", "ok", f"{data}, {free / 1e9:.0f} GB free{writable}")


def _bus(settings, data: Path) -> CheckResult:
    if settings.bus.kind == "embedded" and not (data / "bus").exists():
        return CheckResult("bus", "ok", "embedded, not used yet")
    try:
        bus = open_bus(settings.bus, data)
        bus.ends(["weft.burst_sample.v1"])
        bus.close()
    except WeftError as error:
        return CheckResult("bus", "fail", str(error))
    return CheckResult(
        "bus", "ok", settings.bus.kind + (f" at {settings.bus.servers}" if settings.bus.kind == "kafka" else f" in {data / 'bus'}")
    )


def _store(data: Path) -> CheckResult:
    from ..analytics.store.reader import Reader

    try:
        reader = Reader(data / "store")
    except WeftError as error:
        return CheckResult("store", "ok" if not (data / "store").exists() else "warn", str(error))
    age = (SystemClock().now_ns() - reader.published_ns) / NS_PER_S
    reader.close()
    return CheckResult(
        "store", "ok", f"published {age:.0f} s ago{' (nothing new since, or analyze is not running)' if age > PUBLISH_AGE_S_MAX else ''}"
    )


def _interfaces() -> CheckResult:
    names = [name for _, name in socket.if_nameindex()]
    return CheckResult("interfaces", "ok" if names else "fail", ", ".join(names) or "none", "" if names else "run where there is a network")


def _privileges() -> CheckResult:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except (PermissionError, AttributeError):
        return CheckResult(
            "live capture", "warn", "not permitted", "needed only for collect.packets.interface: run as root or grant CAP_NET_RAW"
        )
    return CheckResult("live capture", "ok", "permitted")


def _port(settings) -> CheckResult:
    from ..dashboards.service import check_port

    try:
        check_port(settings.dash)
    except WeftError as error:
        return CheckResult("dashboard", "warn", str(error))
    return CheckResult("dashboard", "ok", f"port {settings.dash.port} is free")
