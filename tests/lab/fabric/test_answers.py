"""The ground truth equals the fabric's own series, in any number of calls."""

import ast
import importlib
from pathlib import Path

import polars as pl
import pytest

from weft.lab.fabric.answers import Answers
from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import FAULTS, InjectedFault
from weft.lab.fabric.topology import toy
from weft.lab.fabric.workload import Job, Phase

MS = 1_000_000
JOB = Job("ring", (0, 1, 2, 3), (Phase(5 * MS, "allreduce", "rail", 20_000_000),), jitter=0.1)
FAULT = InjectedFault("slow_gpu", "host-0002/mlx5_1", 50 * MS, 60 * MS, 0.5)


def written(folder, cuts) -> dict[str, pl.DataFrame]:
    """Return the tables of a run in several calls."""
    fabric = Fabric(FabricConfig(toy(), (JOB,), (FAULT,)), 3)
    answers = Answers(folder, fabric)
    for cut in cuts:
        answers.write(fabric.advance(cut * MS))
    answers.close()
    answers.close()
    return {path.name: pl.read_parquet(path / "*.parquet") for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The truth of 200 ms."""
    return written(tmp_path_factory.mktemp("truth"), [200])


def test_bursts_are_runs_above_half(tables):
    """Each maximal sequence of samples above half of the line rate is a row, by a loop over the true series."""
    expected = []
    for row in tables["links"].iter_rows(named=True):
        run = None
        for k, value in enumerate([*row["sent"], 0]):
            if value > 100e9 / 8 / 1000 / 2:
                run = run or [k, 0, 0]
                run[1:] = run[1] + value, max(run[2], value)
            elif run:
                start = row["ts"] + run[0] * MS
                expected.append((row["device"], row["port"], start, (k - run[0]) * MS, run[1], run[2], MS))
                run = None
    assert len(expected) > 50
    assert sorted(tables["bursts"].rows()) == sorted(expected)


def test_cuts_do_not_show(tables, tmp_path):
    """All tables have the same rows for any number of writes; a burst across two writes is one."""
    cut = written(tmp_path, [3, 17, 18, 90, 200])
    for name in ("faults", "flows", "iterations", "bursts"):
        assert sorted(cut[name].rows()) == sorted(tables[name].rows()), name
    joined = cut["links"].sort("ts").group_by("device", "port", maintain_order=True).agg(pl.col("sent").list.explode())
    whole = {(row["device"], row["port"]): row["sent"] for row in tables["links"].iter_rows(named=True)}
    assert all(whole[device, port] == sent for device, port, sent in joined.iter_rows())


def test_flows_and_iterations(tables):
    """Flows have the bytes of the links, iterations follow each other, and the slow GPU is the slowest while its fault lasts."""
    hosts = tables["links"].filter(pl.col("device").str.starts_with("host"))
    sent = hosts["sent"].list.sum().sum()
    # Unfinished flows are not in the table.
    assert 0.9 * sent <= tables["flows"]["bytes"].sum() <= sent
    rounds = tables["iterations"].sort("start_ts")
    assert (rounds["start_ts"][1:] == (rounds["start_ts"] + rounds["period_ns"])[:-1]).all()
    fault = tables["faults"].row(0, named=True)
    during = rounds.filter((pl.col("start_ts") > fault["begin_ts"]) & (pl.col("start_ts") + pl.col("period_ns") < fault["end_ts"]))
    assert during.height > 2 and set(during["slowest_device"]) == {"host-0002"} and set(during["slowest_gpu"]) == {1}


def test_every_fault_has_a_line():
    """Every kind of fault has a description and exactly one effect, is in the docs, and unknown kinds are refused."""
    page = (Path(__file__).resolve().parents[3] / "dashboards" / "docs" / "26-fabric.md").read_text()
    for name, kind in FAULTS.items():
        assert kind.doc and (kind.on_export or kind.apply or kind.jobs)
        assert f"| `{name}` |" in page
    with pytest.raises(ValueError, match="slow_nic"):
        Fabric(FabricConfig(toy(), (JOB,), (InjectedFault("nonsense"),)))


def test_the_example_of_the_docs_imports_what_there_is():
    """Every name that the Python example of the docs imports exists in its module."""
    page = (Path(__file__).resolve().parents[3] / "dashboards" / "docs" / "26-fabric.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)]
    assert len(imports) >= 5
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
