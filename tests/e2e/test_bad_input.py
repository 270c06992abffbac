"""Bad input gives a one-sentence error with a hint, good rows are kept, and a broker or disk that comes back loses nothing."""

import contextlib
import json
import os
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from weft.analytics.store.reader import Reader
from weft.pipeline.errors import StoreError

# How long the broker is away: beyond the time-outs of a transaction (15 s) and of a member of a group (10 s).
AWAY_S = 20.0
# How long the disk stays full after the error was logged.
FULL_S = 3.0


def _pcap(link_type: int, packets: int) -> bytes:
    """Return a capture of RoCEv2 SEND-only packets over Ethernet, made by hand."""
    out = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link_type)]
    for number in range(packets):
        bth = struct.pack(">BBHII", 0x04, 0, 0xFFFF, 7, number)
        udp = struct.pack(">HHHH", 49152, 4791, 8 + len(bth) + 4, 0)
        size = 20 + len(udp) + len(bth) + 4
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 2, size, 0, 0, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
        frame = bytes(12) + b"\x08\x00" + ip + udp + bth + bytes(4)
        out.append(struct.pack("<IIII", 1_700_000_000, number * 10, len(frame), len(frame)) + frame)
    return b"".join(out)


def _lines(recording: Any, rows: int) -> list[str]:
    return recording.path.read_text().splitlines(keepends=True)[: rows + 1]


def _stored(weft: Any, data: Path, query: str) -> Any:
    return list(json.loads(weft.run("sql", "--data", data, "--format", "json", query).stdout).values())


def test_a_truncated_capture(weft: Any, tmp_path: Path) -> None:
    """A capture that ends inside a packet fails with the place; the packets before it are stored, and a second replay reports it again."""
    path = tmp_path / "cut.pcap"
    path.write_bytes(_pcap(1, 20)[:-5])
    said = weft.fails("replay", path, "--data", tmp_path / "data")
    assert "ends inside packet 20" in said and "19 packets before it" in said and "copy the file again" in said
    assert _stored(weft, tmp_path / "data", "SELECT sum(packets)::INT FROM roce_1h") == [19]
    assert weft.fails("replay", path, "--data", tmp_path / "data").startswith(said.rsplit(";", 1)[0])


def test_a_word_for_a_number(weft: Any, recording: Any, tmp_path: Path) -> None:
    """A table with a word where a number belongs fails with line and column; the rows before it are stored."""
    lines = _lines(recording, 60)
    words = lines[41].split(",")
    lines[41] = ",".join([*words[:4], "many", *words[5:]])
    path = tmp_path / "word.csv"
    path.write_text("".join(lines))
    said = weft.fails("replay", path, "--data", tmp_path / "data")
    assert "line 42: column 'IngressBytes0' holds 'many'" in said and "the rows before it are used" in said
    assert _stored(weft, tmp_path / "data", "SELECT sum(samples)::INT FROM ports_1h WHERE direction = 'rx'") == [40 * 50]


def test_input_that_cannot_be_read(weft: Any, recording: Any, tmp_path: Path) -> None:
    """A link type that is not decoded, a missing column, no file, an unknown kind, a file of another kind: each error has its hint."""
    (tmp_path / "link.pcap").write_bytes(_pcap(147, 3))
    assert "link type 147" in weft.fails("decode", tmp_path / "link.pcap")
    column = [",".join(line.split(",")[:9] + line.split(",")[10:]) for line in _lines(recording, 5)]
    (tmp_path / "column.csv").write_text("".join(column))
    assert "column 'IngressBytes5' is missing" in weft.fails("decode", tmp_path / "column.csv")
    assert "no such file or folder; check the path" in weft.fails("replay", tmp_path / "none.pcap", "--data", tmp_path / "data")
    said = weft.fails("replay", recording.path, "--kind", "pakets", "--data", tmp_path / "data")
    assert "choose --kind from: " in said and "packets" in said.split("choose --kind from: ")[1]
    (tmp_path / "words").write_text("Lorem ipsum dolor sit amet\n")
    data = ("--data", tmp_path / "data")
    assert "no recording that Weft knows; say what it is with --kind" in weft.fails("replay", tmp_path / "words", *data)
    (tmp_path / "empty.pcap").touch()
    said = weft.fails("replay", recording.path.parent, *data)
    assert "is a folder without recordings.toml, which lists its recordings; name one of its files, or write it" in said
    assert "empty.pcap: is empty; copy or record it again" in weft.fails("replay", tmp_path / "empty.pcap", *data)
    assert "--speed 'fast' is not a speed; write max" in weft.fails("replay", recording.path, "--speed", "fast", *data)
    assert not (tmp_path / "data").exists()


def test_a_recording_of_nothing_ends(weft: Any, tmp_path: Path) -> None:
    """A replay of a capture without RoCEv2 ends soon, reports what the file has, and suggests no query."""
    other = bytes(12) + b"\x08\x06" + bytes(46)
    record = struct.pack("<IIII", 1_700_000_000, 0, len(other), len(other)) + other
    (tmp_path / "arp.pcap").write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + 3 * record)
    done = weft.run("replay", tmp_path / "arp.pcap", "--data", tmp_path / "data")
    assert "0 rows" in done.stdout and "holds nothing yet" in done.stdout and "look at it" not in done.stdout
    assert "packets without a row: 3 not RoCEv2" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--process", "0"), "'0' is not a whole number of at least 1"),
        (("--line-rate", "-5"), "-5 is not a line rate: write bits per second, such as 400e9"),
        (("--line-rate", "nan"), "nan is not a line rate"),
        (("--line-rate", "12.5g"), "12.5g is not a line rate: write bits per second, such as 400e9"),
        (("--run-samples", "0"), "'0' is not a whole number of at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(weft: Any, recording: Any, tmp_path: Path, wrong: tuple[str, str], says: str) -> None:
    """An invalid number is reported with its option before anything starts."""
    done = weft.run("replay", recording.path, "--data", tmp_path / "data", "=".join(wrong), expect=2)
    assert f"argument {wrong[0]}: " in done.stderr and says in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_question_that_is_none(weft: Any, undisturbed: Path) -> None:
    """An empty query, a comment or a semicolon alone is reported as no query, and an unknown family is reported with the known ones."""
    for nothing in ("", ";", "-- only words"):
        assert (
            weft.fails("sql", "--data", undisturbed, nothing)
            == "store: there is no query in it; write one, such as: FROM ports_1s LIMIT 10"
        )
    wrong = weft.fails("sql", "--data", undisturbed, "SELECT 1,\nnope FROM devices")
    assert re.fullmatch(r'store: Binder Error: Referenced column "nope" not found .*\(line 2\); see the views with: SHOW TABLES, .*', wrong)
    assert "'packets' (choose from " in weft.run("decode", undisturbed, "--family", "packets", expect=2).stderr


def test_configuration_that_cannot_be_used(weft: Any, tmp_path: Path) -> None:
    """An unknown key names file, line and the nearest known one; a wrong type, broken TOML and an unknown variable have a hint."""
    config = tmp_path / "weft.toml"
    config.write_text('[bus]\nkind = "embedded"\n\n[collect.host]\nintervall_ms = 2\n')
    arguments = ("check", "--config", config, "--data", tmp_path)
    assert f"{config}:5: unknown key 'collect.host.intervall_ms'; did you mean 'interval_ms'?" == weft.fails(*arguments)
    config.write_text('[process.windows]\nlateness_s = "long"\n')
    assert f"{config}:2: 'process.windows.lateness_s' is 'long'; write a value of type float" == weft.fails(*arguments)
    config.write_text("[process.bursts]\nthreshold_ratio = 7.0\n")
    assert weft.fails(*arguments) == "process.bursts.threshold_ratio: 7.0 is out of range; choose above 0, at most 1"
    config.write_text("[bus\n")
    assert f"{config}: is not TOML" in weft.fails(*arguments)
    config.write_text("")
    assert weft.fails(*arguments, environment={"WEFT_BUSS__KIND": "kafka"}) == "WEFT_BUSS__KIND: is not a setting; did you mean 'bus'?"
    assert "write 'embedded' or 'kafka'" in weft.fails(*arguments, environment={"WEFT_BUS__KIND": "rabbit"})


def test_places_that_cannot_be_used(weft: Any, recording: Any, tmp_path: Path) -> None:
    """A data folder that cannot be created, a missing store, an unreachable broker: each error has its hint."""
    (tmp_path / "file").touch()
    said = weft.fails("replay", recording.path, "--data", tmp_path / "file" / "data")
    assert "cannot be created" in said and "choose another with --data" in said
    assert "nothing is published" in weft.fails("sql", "--data", tmp_path / "none", "SELECT 1")
    nowhere = {"WEFT_BUS__KIND": "kafka", "WEFT_BUS__SERVERS": "127.0.0.1:1", "WEFT_BUS__PATIENCE_S": "2"}
    said = weft.fails("replay", recording.path, "--data", tmp_path / "data", environment=nowhere)
    assert "no Kafka broker at 127.0.0.1:1" in said and "start it, or set bus.servers" in said


def test_a_broker_that_goes_away(
    weft: Any, recording: Any, undisturbed: Path, own_broker: Any, same_tables: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """A broker that is killed during a replay and comes back later loses nothing: the tables equal those of an undisturbed replay."""
    environment = {"WEFT_BUS__KIND": "kafka", "WEFT_BUS__SERVERS": own_broker.address}
    data, words = tmp_path / "data", tmp_path / "said"
    with words.open("w") as said:
        arguments = ("replay", recording.path, *recording.arguments, "--data", data, "--speed", "4x")
        replay = weft.start(*arguments, environment=environment, stdout=said, stderr=said)
    _await_windows(data, replay)
    own_broker.kill()
    time.sleep(AWAY_S)
    assert replay.poll() is None, words.read_text()
    own_broker.start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        replay.wait(120)
    assert replay.returncode == 0 and "Traceback" not in words.read_text(), words.read_text()
    same_tables(undisturbed, data)


def _await_windows(data: Path, replay: "subprocess.Popen[str]") -> None:
    """Wait until windows are published: by then every service is at work."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline and replay.poll() is None
        with contextlib.suppress(StoreError), contextlib.closing(Reader(data / "store")) as reader:
            if reader.frame("FROM ports_1s LIMIT 1").height:
                return
        time.sleep(0.1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of its own, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", folder], capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _fill(folder: Path, filler: Path) -> None:
    """Fill the remaining space."""
    with filler.open("ab") as file, contextlib.suppress(OSError):
        while (free := os.statvfs(folder)).f_bavail:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free.f_bavail * free.f_frsize)


@pytest.mark.parametrize("where", ["data", "data/store"])
def test_a_full_disk_is_waited_for(
    weft: Any, recording: Any, undisturbed: Path, small_disk: Path, same_tables: Callable[[Path, Path], None], tmp_path: Path, where: str
) -> None:
    """When the disk fills up during a replay, Weft logs it with a hint and waits for space; nothing is lost."""
    data = tmp_path / "data"
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).symlink_to(small_disk, target_is_directory=True)
    words = tmp_path / "said"
    with words.open("w") as said:
        replay = weft.start("replay", recording.path, *recording.arguments, "--data", data, "--speed", "2x", stdout=said, stderr=said)
    _await_windows(data, replay)
    full_s = 0.0
    while full_s < FULL_S:
        # Repeatedly, because services free space that they no longer need.
        _fill(small_disk, small_disk / "filler")
        time.sleep(0.1)
        assert replay.poll() is None, words.read_text()
        full_s += 0.1 * ("is full; free space" in words.read_text())
    (small_disk / "filler").unlink()
    code = replay.wait(90)
    text = words.read_text()
    assert code == 0 and "Traceback" not in text, text
    same_tables(undisturbed, data)
