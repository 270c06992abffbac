"""Error correction of a link is a function of its bit error ratio."""

from math import comb

import numpy as np
import pytest

from weft.lab.fabric import fec
from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import InjectedFault
from weft.lab.fabric.topology import toy
from weft.lab.fabric.workload import Job, Phase

MS = 1_000_000


def binomial(errors: float) -> list[float]:
    """Return the chances of 0 .. 15 wrong symbols of 544, and of more, from the definition."""
    wrong = 1 - (1 - errors) ** 10
    exact = [comb(544, j) * wrong**j * (1 - wrong) ** (544 - j) for j in range(545)]
    return [*exact[:16], sum(exact[16:])]


@pytest.mark.parametrize("errors", [1e-6, 1e-4, 2.4e-4, 1e-3, 3e-3, 1e-2])
def test_bins_are_the_binomial(errors):
    """Wrong symbols in a codeword are binomial, and the last bin is its tail."""
    assert fec.chances(errors) == pytest.approx(binomial(errors), rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("errors", [0.0, 1.0])
def test_the_ends_of_the_scale(errors):
    """A link without errors loses nothing, a link of errors only loses everything."""
    expected = np.zeros(17)
    expected[0 if errors == 0 else 16] = 1.0
    assert (fec.chances(errors) == expected).all()


def test_a_links_bins_add_up():
    """The bins of a counter sample sum to all codewords so far, in the shares of the link's error ratio."""
    fabric = Fabric(FabricConfig(toy(), bit_error_ratio=1e-5), 1)
    bins = fabric.advance(1000 * MS).counters[-1].fec_bins
    # 257b blocks in 5,140-bit messages at 100G.
    total = 100e9 / (5140 * 256 / 257)
    assert bins.sum(axis=1) == pytest.approx(total, rel=1e-6)
    for port in range(4):
        expected = np.array(binomial(fabric.error_ratio[port])) * total
        assert np.abs(bins[port] - expected).max() <= 1 + 1e-6 * total


def test_a_dirty_fibre_ends_in_retransmissions():
    """As a link's error ratio doubles, wrong symbols grow first, then codewords are lost, frames break and are resent."""
    job = Job("ring", (0, 1, 2, 3), (Phase(MS, "allreduce", "rail", 10_000_000),), queue_pairs=1)
    fault = InjectedFault("dirty_fibre", "host-0001/mlx5_0", 100 * MS, 800 * MS, 2.5e-3)
    counters = Fabric(FabricConfig(toy(), (job,), (fault,)), 1).advance(1000 * MS).counters
    out = 4  # the port of host-0001's first adapter
    grown = np.diff(np.stack([sample.fec_bins[out] for sample in counters]), axis=0)
    worst = [int(np.flatnonzero(row)[-1]) for row in grown]
    assert worst[0] < 8 and worst[-3] == 16 and worst == sorted(worst[:-1]) + worst[-1:]
    broken = [int(sample.ports["broken"][out]) for sample in counters]
    assert broken[1] == 0 and broken[-1] > 0
    assert counters[-1].adapters["resent"].sum() > 0
    others = np.setdiff1d(np.arange(len(counters[-1].ports["broken"])), [out, out + 1])
    assert counters[-1].ports["broken"][others].sum() == 0
