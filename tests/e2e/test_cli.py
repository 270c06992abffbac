"""The command line as users see it: help, formats, pipes, a prompt, own recordings, and checks of the environment."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import select
import socket
import time
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from weft import __version__
from weft.cli import COMMANDS, main

LIMIT_S = 60.0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` of each command describes it and shows an example."""
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert re.search(rf"examples:\n(  weft {name}\b.*\n)+", said) and "exit codes: 0 done" in said


def test_version_and_wrong_command_lines(weft: Any) -> None:
    """``--version`` prints the version; an unknown command is exit code 2 with the list of commands."""
    assert weft.run("--version").stdout == f"weft {__version__}\n"
    assert "choose from" in weft.run("frobnicate", expect=2).stderr
    assert "usage: weft" in weft.run(expect=2).stderr


def _decoded(weft: Any, path: Path, form: str) -> list[dict[str, Any]]:
    """Return rows of a recording as printed in a format, values as text and lists as numbers."""
    out = weft.run("decode", path, "--format", form, text=False).stdout
    if form == "parquet":
        return pl.read_parquet(io.BytesIO(out)).to_dicts()
    if form == "json":
        return [json.loads(line) for line in out.splitlines()]
    rows = list(csv.DictReader(io.StringIO(out.decode())))
    return [{name: json.loads(text) if name == "values" else text for name, text in row.items()} for row in rows]


def test_decode_prints_the_same_in_every_format(weft: Any, recording: Any, tmp_path: Path) -> None:
    """CSV, JSON and Parquet of a recording have equal rows, the samples of the recording; the table shows them too."""
    path = tmp_path / "part.csv"
    path.write_text("".join(recording.path.read_text().splitlines(keepends=True)[:21]))
    parquet, rows, texts = (_decoded(weft, path, form) for form in ("parquet", "json", "csv"))
    assert parquet == rows
    assert [{name: value if name == "values" else str(value) for name, value in row.items()} for row in rows] == texts
    received = [value for row in rows if row["signal"] == "rx_bytes" for value in row["values"]]
    assert received == recording.samples[0, 0, :1000].tolist()
    table = weft.run("decode", path).stdout
    assert "burst_sample" in table and "rack-1" in table and "rx_bytes" in table


def test_readers_may_leave(weft: Any, recording: Any, undisturbed: Path) -> None:
    """A reader of the output that stops early, as ``head`` does, ends a command quietly."""
    wide = "SELECT * FROM range(200000)"
    for command in (
        ("decode", recording.path, "--format", "csv"),
        ("decode", recording.path, "--format", "parquet"),
        ("sql", "--data", undisturbed, "--format", "json", wide),
    ):
        process = weft.start(*command, text=False)
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(LIMIT_S) == 0, said
        assert "Traceback" not in said and "Exception" not in said and "error" not in said.lower()


def test_a_full_disk_under_the_output_is_reported(weft: Any, undisturbed: Path) -> None:
    """Output that cannot be written is one sentence and exit code 1."""
    with Path("/dev/full").open("w") as full:
        said = weft.run("sql", "--data", undisturbed, "SELECT 1", stdout=full, expect=1).stderr
    assert said == "weft: the output cannot be written, its disk is full; free space or write elsewhere\n"


def test_sql_formats(weft: Any, undisturbed: Path) -> None:
    """One query gives the same rows as table, CSV, JSON lines and Parquet; standard input takes a query as well."""
    query = "SELECT device, port, bytes, start_ts FROM bursts ORDER BY bytes DESC, start_ts LIMIT 5"
    arguments = ("sql", "--data", undisturbed, "--format")
    frame = pl.read_parquet(io.BytesIO(weft.run(*arguments, "parquet", query, text=False).stdout))
    rows = [json.loads(line) for line in weft.run(*arguments, "json", query).stdout.splitlines()]
    lines = list(csv.DictReader(io.StringIO(weft.run(*arguments, "csv", query).stdout)))
    assert frame.height == 5 and frame["start_ts"].dtype == pl.Datetime("ns")
    for name in ("device", "port", "bytes"):
        assert frame[name].to_list() == [row[name] for row in rows] == [type(frame[name][0])(line[name]) for line in lines]
    assert [line["start_ts"] for line in lines] == frame["start_ts"].dt.strftime("%Y-%m-%dT%H:%M:%S%.9f").to_list()
    assert all(str(value) in weft.run(*arguments, "table", query).stdout for value in frame["bytes"])
    with (undisturbed.parent / "query.sql").open("w+") as file:
        file.write(query)
        file.seek(0)
        assert [json.loads(line) for line in weft.run(*arguments, "json", stdin=file).stdout.splitlines()] == rows


def test_sql_errors(weft: Any, undisturbed: Path) -> None:
    """An invalid query, one that would write, and one whose result cannot be shown are reported with exit code 1."""
    arguments = ("sql", "--data", undisturbed)
    assert "Table with name nothing does not exist" in weft.fails(*arguments, "SELECT * FROM nothing")
    assert "syntax error" in weft.fails(*arguments, "SELEC 1")
    assert "read-only" in weft.fails(*arguments, "CREATE TABLE mine (a INT)")
    assert "cast it, as in column::VARCHAR" in weft.fails(*arguments, "SELECT INTERVAL 1 DAY AS day")


def _talk(weft: Any, arguments: list[str], lines: list[tuple[str, str]]) -> tuple[str, int]:
    """Run ``weft`` on a terminal: await each text, then type its answer; return the output and the exit code."""
    terminal, inside = pty.openpty()
    process = weft.start(*arguments, stdin=inside, stdout=inside, stderr=inside, environment={"TERM": "dumb"}, start_new_session=True)
    os.close(inside)
    shown, position, deadline = "", 0, time.monotonic() + LIMIT_S
    for text, typed in lines:
        while (found := shown.find(text, position)) < 0:
            assert time.monotonic() < deadline, (text, shown)
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
        position = found + len(text)
        os.write(terminal, typed.encode())
    code = process.wait(LIMIT_S)
    with contextlib.suppress(OSError):
        shown += os.read(terminal, 65536).decode(errors="replace")
    os.close(terminal)
    return shown, code


def test_a_prompt_on_a_terminal(weft: Any, undisturbed: Path) -> None:
    """Without a query there is a prompt: a query over several lines is answered, a wrong one is explained, Ctrl-D leaves."""
    lines = [
        ("weft> ", "SELECT 6 * 7\n"),
        ("... ", "AS answer;\n"),
        ("42", ""),
        ("weft> ", "SELECT nothing;\n"),
        ("not found", ""),
        ("weft> ", "\x04"),
    ]
    shown, code = _talk(weft, ["sql", "--data", str(undisturbed)], lines)
    assert code == 0 and "answer" in shown and "Traceback" not in shown


def test_record_and_replay(weft: Any, tmp_path: Path) -> None:
    """The samples that ``record`` writes are those that ``decode`` prints and ``replay`` stores."""
    path = tmp_path / "night.weft"
    said = weft.run("record", path, "--seconds", 2, "--interface", "lo", "--interval-ms", 5).stdout
    assert f"replay them with: weft replay {path}" in said
    rows = _decoded(weft, path, "json")
    samples = [row for row in rows if "values" in row]
    assert len(rows) == int(re.search(r"recorded ([\d,]+) rows", said)[1].replace(",", "")) and samples  # type: ignore[index]
    weft.run("replay", path, "--data", tmp_path / "data")
    query = "SELECT signal, sum(samples)::INT AS samples, sum(total)::BIGINT AS total FROM state.port_samples_1h GROUP BY ALL ORDER BY ALL"
    stored = [json.loads(line) for line in weft.run("sql", "--data", tmp_path / "data", "--format", "json", query).stdout.splitlines()]
    assert stored == [
        {"signal": signal, "samples": sum(map(len, values)), "total": sum(map(sum, values))}
        for signal in ("rx_bytes", "tx_bytes")
        for values in [[row["values"] for row in samples if row["signal"] == signal]]
    ]
    assert "there is no interface 'nope'" in weft.fails("record", tmp_path / "x.weft", "--interface", "nope", "--seconds", 1)


def test_check_reports_findings_with_hints(weft: Any, tmp_path: Path, undisturbed: Path) -> None:
    """``check`` prints one line per finding, as text or JSON, and fails only if something must be corrected."""
    found = json.loads(weft.run("check", "--data", undisturbed, "--format", "json").stdout)
    states = {finding["what"]: finding["state"] for finding in found}
    assert {states[what] for what in ("configuration", "alert rules", "bus", "store", "interfaces")} == {"ok"}
    lines = weft.run("check", "--data", undisturbed).stdout.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == [finding["state"] for finding in found]
    rules = tmp_path / "weft.toml"
    rules.write_text(f'[analyze.alerts]\nrules = "{tmp_path / "none"}"\n')
    failed = weft.run("check", "--config", rules, "--data", undisturbed, expect=1).stdout
    assert re.search(r"^fail +alert rules .*is not a folder of alert rules; create it", failed, re.MULTILINE)


def test_check_runs_the_tests_of_the_users_rules(weft: Any, tmp_path: Path) -> None:
    """A user's rule whose test does not hold fails with file and line; printed settings show no receiver's address."""
    rule = tmp_path / "rules" / "hot.toml"
    rule.parent.mkdir()
    query = "SELECT ts, device, x AS value FROM t WHERE ts >= $from AND ts < $to"
    test = '[[test]]\nname = "one"\ntable = "t"\nrows = [{ ts_s = 0, device = "a", x = 1 }]\nfires = '
    config = tmp_path / "weft.toml"
    url = "https://user:TOKEN-1@host/TOKEN-2?key=TOKEN-3"
    config.write_text(f'[analyze.alerts]\nrules = "{rule.parent}"\n[[analyze.notify.slack]]\nurl = "{url}"\n')
    printed = weft.run("check", "--dump", "--config", config, "--data", tmp_path).stdout
    assert "TOKEN" not in printed and 'url = "********"' in printed
    config.write_text(f'[analyze.alerts]\nrules = "{rule.parent}"\n')
    for fires, state, text in (
        ("true", "ok", "26 rules, no receiver"),
        ("false", "fail", f"{rule}:4: test 'one': the alert fired"),
    ):
        rule.write_text(f'name = "hot"\nquery = "{query}"\ncondition = "> 0"\n{test}{fires}\n')
        arguments = ("check", "--config", config, "--data", tmp_path, "--format", "json")
        found = json.loads(weft.run(*arguments, expect=int(state == "fail")).stdout)
        (finding,) = [finding for finding in found if finding["what"] == "alert rules"]
        assert finding["state"] == state and text in finding["text"], finding


def test_check_tries_what_up_would(weft: Any, tmp_path: Path) -> None:
    """An unusable address of a receiver, interface and file fail by name; an address in use is a warning."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        config = tmp_path / "weft.toml"
        config.write_text(
            f'[collect.host]\ninterfaces = ["lo"]\n[collect.sflow]\nenabled = true\naddress = "127.0.0.1"\nport = {port}\n'
            '[collect.packets]\ninterface = "nope"\n[collect.inventory]\nfiles = ["/none.csv"]\n'
            '[[analyze.notify.webhook]]\nurl = "127.0.0.1/alerts"\n'
        )
        arguments = ("check", "--config", config, "--data", tmp_path, "--format", "json")
        found = json.loads(weft.run(*arguments, expect=1).stdout)
    states = {finding["what"]: (finding["state"], finding["text"]) for finding in found}
    expected = {
        "alert rules": ("fail", "the url cannot be used; write it as in https://"),
        "collect.host": ("ok", "starts"),
        "collect.sflow": ("warn", f"127.0.0.1:{port} is in use"),
        "collect.packets": ("fail", "there is no interface 'nope'"),
        "collect.inventory": ("fail", "/none.csv: cannot be read"),
    }
    assert {what: states[what][0] for what in expected} == {what: state for what, (state, _) in expected.items()}
    assert [what for what, (_, text) in expected.items() if text not in states[what][1]] == []


def test_a_word_that_a_command_does_not_know_is_named_with_the_nearest(weft: Any) -> None:
    """The usage is the command's own, and the last line names the unknown word and the nearest option."""
    said = weft.run("replay", "x.pcap", "--sped", "1x", expect=2).stderr
    assert (
        said.startswith("usage: weft replay")
        and said.splitlines()[-1] == "weft replay: error: there is no '--sped' here; did you mean --speed"
    )


def test_check_dump_is_a_configuration(weft: Any, tmp_path: Path) -> None:
    """``check --dump`` prints the configuration in force; read back, it is the same."""
    config = tmp_path / "weft.toml"
    config.write_text(
        '[collect.host]\ndevice = "a \\"b\\" \\\\ c"\nline_rate_bps = { lo = 1000, "eth0.7" = 2000 }\n'
        '[[analyze.notify.webhook]]\nname = "one"\nurl = "http://127.0.0.1/x"\n'
    )
    first = weft.run("check", "--config", config, "--dump", environment={"WEFT_PROCESS__WINDOWS__IDLE_S": "7"}).stdout
    tree = tomllib.loads(first)
    assert tree["collect"]["host"]["device"] == 'a "b" \\ c' and tree["collect"]["host"]["line_rate_bps"] == {"lo": 1000, "eth0.7": 2000}
    assert tree["process"]["windows"]["idle_s"] == 7 and tree["analyze"]["notify"]["webhook"][0]["name"] == "one"
    config.write_text(first)
    assert tomllib.loads(weft.run("check", "--config", config, "--dump").stdout) == tree
