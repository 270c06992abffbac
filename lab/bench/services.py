"""Services in child processes, as ``weft up`` runs them, for benchmarks that drain a bus."""

import os
import subprocess
import sys
from pathlib import Path

from ...pipeline.bus import Bus
from ...pipeline.clock import NS_PER_S, SystemClock


class Services:
    """Runs services with the given arguments while the block lasts."""

    def __init__(self, data: Path, *arguments: tuple[str, ...]) -> None:
        self._data = data
        self._arguments = arguments
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Services":
        for arguments in self._arguments:
            command = [sys.executable, "-m", "weft", *arguments, "--data", str(self._data), "--log-level", "error"]
            self._running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()

    def drain(self, bus: Bus, units: int) -> float:
        """Return units/s from the first transaction to the last stored row, without the time to start."""
        from ...analytics.store.lag import stored_lag
        from ...pipeline.process.service import GROUP, ProcessService
        from ...pipeline.report import lag

        clock, topics = SystemClock(), list(ProcessService.topics)
        total = left = lag(bus, GROUP, topics)
        while (left := lag(bus, GROUP, topics)) == total:
            clock.wait(0.02)
        began, first = clock.monotonic_ns(), left
        while lag(bus, GROUP, topics) or stored_lag(bus):
            clock.wait(0.02)
        return units * first / total / (clock.monotonic_ns() - began) * NS_PER_S

    def peak_bytes(self) -> dict[str, int]:
        """Return the peak private memory of each service, and the memory that they share (code of libraries)."""
        peaks, shared = {}, 0
        for arguments, process in zip(self._arguments, self._running, strict=True):
            now = _kibibytes(process.pid, "smaps_rollup")
            common = now["Shared_Clean"] + now["Shared_Dirty"]
            peaks[arguments[-1]] = 1024 * (_kibibytes(process.pid, "status")["VmHWM"] - common)
            shared = max(shared, 1024 * common)
        return {**peaks, "shared": shared}

    def cpu_seconds(self) -> float:
        """Return the processor time that all services have used."""
        ticks = 0
        for process in self._running:
            ticks += sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")


def _kibibytes(pid: int, what: str) -> dict[str, int]:
    lines = [line.split() for line in Path(f"/proc/{pid}/{what}").read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


def memory(peaks: dict[str, int]) -> str:
    """Return the peaks of services as text."""
    return " + ".join(f"{peak / 1e6:.0f}" for peak in peaks.values()) + " MB"
