"""Scores of alerts against the ground truth: cases counted by hand."""

import pytest

from weft.lab.score.score import FaultPlace, ScoredAlert, ScoredRun, false_alarms, score

S = 1_000_000_000
LINK = FaultPlace(frozenset({("leaf-0", "Ethernet8"), ("host-1", "mlx5_0")}))


def alert(at_s: float, device: str = "", port: str = "", rule: str = "r", **labels: str) -> ScoredAlert:
    """Return an alert with these labels, without the empty ones."""
    named = {name: value for name, value in {"device": device, "port": port, **labels}.items() if value}
    return ScoredAlert(rule, named, round(at_s * S))


def run(*alerts: ScoredAlert, place: FaultPlace = LINK, begin_s: float = 3, end_s: float = 6) -> ScoredRun:
    """Return a run of 10 s with a fault from 3 to 6 s."""
    return ScoredRun("fault", 10 * S, alerts, place, round(begin_s * S), round(end_s * S))


def test_both_ends_of_a_link_are_its_place():
    """Alerts on the switch port that faces the host and on the host's own port are right; others are not."""
    good = [alert(4, "leaf-0", "Ethernet8"), alert(5, "host-1", "mlx5_0")]
    bad = [alert(4, "leaf-0", "Ethernet16"), alert(4, "leaf-1", "Ethernet8"), alert(4, "leaf-0")]
    done = score("fault", [run(*good, *bad)])
    assert (done.right, done.alerts, done.precision, done.recall) == (2, 5, 0.4, 1.0)
    # Four name the right device: the two, another port of the leaf, and the leaf alone.
    assert done.device_ratio == 0.8


def test_time_to_detect_is_that_of_the_first_right_alert():
    """The delay ignores wrong alerts, and right ones before the fault; over runs it is the median."""
    one = run(alert(1, "leaf-0", "Ethernet8"), alert(3.5, "leaf-7", "Ethernet0"), alert(4.25, "leaf-0", "Ethernet8", "late"))
    other = run(alert(3.75, "host-1", "mlx5_0", "soon"))
    assert score("fault", [one]).detect_s == 1.25
    assert score("fault", [one, other]).detect_s == 1.0
    assert score("fault", [one, other]).rules == ("late", "soon")


def test_alerts_outside_the_fault_s_time_are_not_right():
    """Alerts count from the begin to two seconds after the end; others lower the precision."""
    early, last, after = (alert(at, "leaf-0", "Ethernet8") for at in (2.9, 8.0, 8.1))
    assert score("fault", [run(early)]).recall == 0.0
    assert score("fault", [run(last)]).recall == 1.0
    done = score("fault", [run(after)])
    assert (done.recall, done.precision, done.detect_s, done.rules) == (0.0, 0.0, None, ())


def test_the_first_alert_decides_the_place():
    """A run is localised if its first alert in the fault's time names the place, regardless of later ones."""
    right_first = run(alert(4, "leaf-0", "Ethernet8"), alert(5, "leaf-3", "Ethernet0"))
    wrong_first = run(alert(4, "leaf-3", "Ethernet0"), alert(5, "leaf-0", "Ethernet8"))
    silent = run()
    done = score("fault", [right_first, wrong_first, silent])
    assert done.localised == pytest.approx(1 / 3) and done.recall == pytest.approx(2 / 3)


def test_devices_jobs_and_everywhere():
    """A fault of a device has no port, that of a job is named by its label, that of all switches by any alert."""
    assert score("frozen", [run(alert(4, "leaf-0", "Ethernet0"), place=FaultPlace(devices=frozenset({"leaf-0"})))]).precision == 1.0
    assert score("qps", [run(alert(4, "leaf-0"), alert(5, job="train"), place=FaultPlace(job="train"))]).precision == 0.5
    assert score("seeds", [run(alert(4, "leaf-0"), place=FaultPlace())]).recall == 1.0


def test_nothing_found_is_zero_and_no_precision():
    """Without alerts there is no precision."""
    done = score("fault", [run()])
    assert (done.recall, done.precision, done.localised, done.detect_s) == (0.0, None, 0.0, None)


def test_false_alarms_a_day():
    """Two alarms in 20 quiet seconds are 8,640 a day; the upper limit without any is three events in that time (Poisson)."""
    quiet = ScoredRun("quiet", 10 * S, (alert(1), alert(2)))
    found = false_alarms([quiet, ScoredRun("quiet", 10 * S, ()), run(alert(4))])
    assert found is not None and (found.alarms, found.seconds, found.a_day) == (2, 20.0, 8640.0)
    # Upper limits of a Poisson mean at 95 %: 2.996 after none, 6.296 after two (tables of Garwood, 1936).
    assert found.at_most == pytest.approx(6.296 * 4320, rel=1e-3)
    none = false_alarms([ScoredRun("quiet", 86_400 * S, ())])
    assert none is not None and none.at_most == pytest.approx(2.996, rel=1e-3)
    assert false_alarms([run()]) is None
