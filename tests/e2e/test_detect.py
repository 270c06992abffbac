"""``weft bench detect`` end to end: one fault and one quiet run of the smallest fabric, through the whole pipeline."""

import json

import pytest

from weft.cli import main


def test_a_dead_link_is_found_and_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """The rules name both ends of a dead link within two seconds and nothing else; metrics without faults are those of the fabric."""
    arguments = ("--faults", "rail_down", "--quiet-seeds", "1", "--scales", "toy", "--run-seconds", "4", "--format", "json")
    assert main(["bench", "detect", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    (found,) = report["faults"]
    assert (found["kind"], found["recall"], found["precision"], found["localised"]) == ("rail_down", 1.0, 1.0, 1.0)
    assert 0 < found["detect_s"] <= 2 and "link-flap" in found["rules"]
    assert report["false_alarms"]["alarms"] == 0 and report["false_alarms"]["seconds"] == 4
    errors = {error["metric"]: error for error in report["errors"]}
    for metric in ("utilisation, mean", "utilisation, highest sample", "bursts of a port, number", "bursts of a port, time"):
        assert errors[metric]["worst"] < 1e-9 and errors[metric]["count"] > 0, metric
    for metric in ("latency of a path, p50", "latency of a path, p99"):
        # Quantiles are kept within 1 %.
        assert errors[metric]["worst"] <= 0.011 and errors[metric]["count"] > 0, metric


def test_unknown_names_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown fault, scale or part is reported by name, and detect runs alone."""
    for arguments, code in ((("detect", "--faults", "slow_nics"), 2), (("detects",), 2)):
        with pytest.raises(SystemExit) as stopped:
            main(["bench", *arguments])
        assert stopped.value.code == code
        assert "slow_nic" in (error := capsys.readouterr().err) or "detects" in error
    assert main(["bench", "detect", "--faults", "none", "--scales", "65"]) == 1
    assert "65" in capsys.readouterr().err
    assert main(["bench", "detect", "bursts"]) == 1
    assert "alone" in capsys.readouterr().err
