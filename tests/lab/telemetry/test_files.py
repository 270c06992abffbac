"""A run of the fabric as recordings: the same seed gives the same bytes, and collectors read back the fabric's values."""

import hashlib
from pathlib import Path

import polars as pl
import pytest

from weft.collectors.base import Options
from weft.collectors.replay import read
from weft.lab.telemetry.files import Files
from weft.lab.telemetry.scenario import fault_of, scenario
from weft.lab.telemetry.scene import layout
from weft.pipeline.clock import NS_PER_MS, NS_PER_S
from weft.pipeline.errors import InputError, ServiceError

SECONDS = 2
START = 1_767_225_600 * NS_PER_S


def recorded(folder: Path, *faults: str, seed: int = 1) -> Path:
    """Record two seconds of the smallest fabric."""
    Files(folder, scenario("toy", faults, seed, SECONDS), seed).write(SECONDS * NS_PER_S)
    return folder


def rows_of(folder: Path) -> dict[str, pl.DataFrame]:
    """Return all rows of a folder, by family."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for batch in read(folder, None, Options()):
        parts.setdefault(batch.family, []).append(batch.frame)
    return {family: pl.concat(frames) for family, frames in parts.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a pause storm."""
    return recorded(tmp_path_factory.mktemp("lab") / "run", "pause_storm@host-0001/mlx5_0")


@pytest.fixture(scope="module")
def rows(run: Path) -> dict[str, pl.DataFrame]:
    """Return the rows of the folder."""
    return rows_of(run)


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file's bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(run, tmp_path):
    """Every file of a second run with the same seed is the same to the last byte; another seed gives other telemetry."""
    first, again = digests(run), digests(recorded(tmp_path / "again", "pause_storm@host-0001/mlx5_0"))
    assert again == first
    other = digests(recorded(tmp_path / "other", "pause_storm@host-0001/mlx5_0", seed=2))
    assert {name for name in first if name.startswith("hft/") and name.endswith(".ipfix")} & {n for n in first if first[n] != other[n]}


def test_samples_are_the_true_series_of_each_link(run, rows):
    """High-frequency telemetry, read by its collector, has each port's bytes of each millisecond as in the ground truth."""
    links = pl.read_parquet(run / "truth" / "links" / "*.parquet").filter(pl.col("device").str.contains("leaf|spine"))
    samples = rows["burst_sample"].filter(pl.col("source") == "hft").sort("ts")
    assert samples["device"].n_unique() == links["device"].n_unique() > 1
    for (device, port), true in links.sort("ts").partition_by("device", "port", as_dict=True).items():
        mine = samples.filter(device=device, port=port, queue="", signal="tx_bytes")
        assert mine.explode("values")["values"].to_list() == true.explode("sent")["sent"].to_list(), (
            device,
            port,
        )
        assert mine["ts"][0] == START
    assert links.explode("sent")["sent"].sum() > 0


def test_each_value_has_one_source(rows):
    """No column of a port or queue, no signal and no kind of latency has values of two sources."""
    for family, keys in (("port", ["device", "port"]), ("queue", ["device", "port", "queue", "direction"])):
        frame = rows[family]
        values = [name for name in frame.columns if name not in {*keys, "ts", "recv_ts", "source", "epoch", "speed_bps"}]
        sources = frame.group_by(keys).agg(*(pl.col("source").filter(pl.col(name).is_not_null()).n_unique().alias(name) for name in values))
        doubled = [name for name in values if sources[name].max() > 1]  # type: ignore[operator]
        assert not doubled, family
    for family, keys in (("burst_sample", ["device", "port", "queue", "signal"]), ("latency", ["device", "kind"]), ("packet", ["device"])):
        assert rows[family].group_by(keys).agg(pl.col("source").n_unique())["source"].max() == 1, family


def test_every_protocol_brings_its_part(rows):
    """The folder has gNMI, high-frequency telemetry, sFlow, a capture and the hosts' own samples, under the devices' names."""
    brought = {(family, source) for family, frame in rows.items() for source in frame["source"].unique().to_list()}
    assert {("port", "gnmi"), ("queue", "gnmi"), ("burst_sample", "hft"), ("packet", "sflow"), ("packet", "packets")} <= brought
    assert {("nic", "lab"), ("nvlink", "lab"), ("gpu", "lab"), ("latency", "lab"), ("inventory", "lab")} <= brought
    devices = set(rows["inventory"]["device"].to_list())
    assert all(set(frame["device"].to_list()) <= devices for frame in rows.values())
    assert "gap" not in rows


def test_pings_take_what_the_queues_take(rows):
    """Every captured ping has its acknowledgement, not earlier than a round trip without queues."""
    pings = rows["packet"].filter(pl.col("source") == "packets")
    requests, answers = pings.filter(pl.col("opcode") == 4), pings.filter(pl.col("opcode") == 17)
    assert requests.height == answers.height and requests.height % (SECONDS * 1000) == 0
    answers = answers.select("qp", psn=pl.col("ack_psn"), back="ts")
    trips = requests.select("qp", "psn", "ts").join(answers, on=["qp", "psn"])
    taken = trips["back"] - trips["ts"]
    # Hosts of one leaf are two hops apart, of 900 ns each.
    assert trips.height == requests.height and taken.min() >= 2 * 2 * 900 and taken.max() < 100 * NS_PER_MS  # type: ignore[operator]


def test_a_lossy_device_is_silent_for_its_share(tmp_path):
    """A switch that loses everything after the first second has no telemetry from then on; the others do."""
    rows = rows_of(recorded(tmp_path / "run", "lossy_collector@leaf-00-0@1@2@1"))
    ends = rows["burst_sample"].group_by("device").agg(end=(pl.col("ts") + pl.col("values").list.len() * NS_PER_MS).max())
    last = {device: (end - START) / NS_PER_S for device, end in ends.iter_rows()}
    # Samples are lost by tenths of a second; a depth is of the following millisecond.
    assert last["leaf-00-0"] == pytest.approx(0.9, abs=0.01) and last["leaf-01-0"] == pytest.approx(2.0, abs=0.01)


def test_a_folder_is_written_once(run):
    """An existing folder is refused and left unchanged."""
    with pytest.raises(ServiceError, match="is there already"):
        recorded(run)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slow_nics", "no fault"),
        ("slow_nic@host-0009/mlx5_0", "no device"),
        ("slow_nic@host-0001", "names no port"),
        ("slow_nic@host-0001/mlx5_7", "has no port"),
        ("slow_nic@@soon", "not a number"),
        ("slow_nic@@-1", "out of range"),
        ("slow_nic@@nan", "out of range"),
        ("slow_nic@a@b@c@d@e", "too many parts"),
    ],
)
def test_an_invalid_fault_is_reported(text, problem):
    """An invalid fault is reported before anything runs."""
    with pytest.raises(InputError, match=problem):
        scenario("toy", [text], 1, SECONDS)


def test_what_is_left_out_of_a_fault_is_chosen():
    """Default times follow from the length of the run, the default place from the seed, and it fits the fault."""
    topology = layout("toy")
    fault = fault_of(topology, "slow_nic", 1, 9)
    assert (fault.begin_ns, fault.duration_ns, fault.severity) == (3 * NS_PER_S, 4.5 * NS_PER_S, 0.5)
    places = {fault_of(topology, "slow_nic", seed, 9).place for seed in range(40)}
    assert len(places) > 4 and all(place.startswith("host-") for place in places)
    said = fault_of(topology, "link_flap@leaf-00-0/Ethernet0@1.5@2@0.25", 1, 9)
    assert (said.place, said.begin_ns, said.duration_ns, said.severity) == ("leaf-00-0/Ethernet0", 1_500_000_000, 2 * NS_PER_S, 0.25)
