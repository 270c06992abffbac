"""``weft counters`` for a name from a switch, one of Weft's, and a mistyped one."""

import json

import pytest

from weft.cli import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Run the command and return what it printed, on standard error where it failed."""
    assert main(["counters", *arguments]) == code
    out, err = capsys.readouterr()
    assert (err == "") == (code == 0)
    return out if code == 0 else err


def test_a_name_of_a_switch_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Part of a SAI name finds its meaning, its column in Weft, its number, and its name on a network adapter."""
    text = said(capsys, "PFC_3_RX")
    first = text.split("\n\nqueue.")[0]
    assert "queue.pfc_rx_frames  (n = 3)" in first and "column pfc_rx_frames of family queue" in first and "in frames" in first
    assert "SAI_PORT_STAT_PFC_3_RX_PKTS" in first and "0x6d" in first and "rx_prio3_pause" in first
    assert "queue.pfc_rx_pause_us" in text


def test_traps_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Saturation, wrapping and InfiniBand's terms are printed beside the name."""
    assert "stops at 255" in said(capsys, "link_downed")
    assert "wraps at 2^32" in said(capsys, "out_of_buffer")
    assert "times 4" in said(capsys, "port_xmit_data")


def test_one_source_answers_for_another(capsys: pytest.CaptureFixture[str]) -> None:
    """``--source`` translates a counter's name into that of the source, and without a name lists the whole source."""
    text = said(capsys, "out_of_sequence", "--source", "ionic")
    assert "resp_rx_outouf_seq" in text and "mlx5" not in text
    assert "unresponsive_remote_events" in said(capsys, "--source", "efa")
    assert "efa" in said(capsys) and "openconfig" in said(capsys)


def test_json_is_a_line_for_each_name(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has the same facts for programs: canonical name, source, its name, bits and number."""
    rows = [json.loads(line) for line in said(capsys, "PFC_3_RX_PKTS", "--format", "json").splitlines()]
    first = next(row for row in rows if row["source"] == "sai")
    told = {name: first[name] for name in ("counter", "source_name", "n", "bits", "kind", "id", "saturates")}
    assert told == {
        "counter": "queue.pfc_rx_frames",
        "source_name": "SAI_PORT_STAT_PFC_3_RX_PKTS",
        "n": 3,
        "bits": 64,
        "kind": "counter",
        "id": 0x6D,
        "saturates": False,
    }


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("rx_pakets",), "did you mean rx_packets"),
        (("xyzzyqqq",), "weft counters pause"),
        (("--source", "nobody"), "choose from sai"),
        (("port_xmit_wait", "--source", "efa"), "these have: mlx5_sysfs"),
    ],
)
def test_an_unknown_name_gets_a_hint(arguments: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name is one sentence with close matches, and exit code 1."""
    text = said(capsys, *arguments, code=1)
    assert text.startswith("weft: ") and hint in text and text.count("\n") == 1
