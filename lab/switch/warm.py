"""Compiles the decoders: ``python -m weft.lab.switch.warm``, at installation, so that a first start does not wait for it.

A kernel is compiled for the very types that it meets, so the lab's scripted switch speaks each protocol over loopback to the
ordinary collectors, until each has made rows of it. Numba keeps what it compiled beside the source.
"""

import logging
import tempfile
from pathlib import Path

from ...collectors.service import CollectConfig, configured
from ...pipeline import config
from ...pipeline.clock import NS_PER_S, SystemClock
from ...pipeline.errors import WeftError
from .serve import PROTOCOLS, Lab, LabConfig
from .wire import free_port

# Rows of these show that all of a protocol's decoder has run.
_WANTED = {("sflow", "port"), ("sflow", "packet"), ("hft", "burst_sample"), ("otlp", "burst_sample"), ("gnmi", "port"), ("gnmi", "queue")}
PATIENCE_S = 240


def warm() -> set[tuple[str, str]]:
    """Let the lab feed every collector; return the sources and families that never came. Raises ``WeftError``."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="weft-warm-") as folder:
        lab = Lab(LabConfig(ports={name: 0 if name == "gnmi" else free_port() for name in PROTOCOLS}, switch_ports=8), clock, Path(folder))
        lab.start()
        file = Path(folder) / "weft.toml"
        file.write_text(f"{lab.toml()}\n[collect.host]\nenabled = false\n".replace("[collect.", "["))
        live = configured(config.load(CollectConfig, file, {}), clock)
        missing = set(_WANTED)
        deadline = clock.monotonic_ns() + PATIENCE_S * NS_PER_S
        try:
            for collector in live.values():
                collector.start()
            while missing and clock.monotonic_ns() < deadline:
                lab.step()
                for name, collector in live.items():
                    missing -= {(name, batch.family) for batch in collector.drain() if batch.frame.height}
        finally:
            for collector in live.values():
                collector.stop()
            lab.stop()
        return missing


def main() -> None:
    """Warm; a machine where that does not work compiles when a service first needs it."""
    logging.disable(logging.WARNING)
    try:
        missing = warm()
    except WeftError as error:
        print(f"note: decoders are compiled at their first use: {error}")
        return
    if missing:
        print(f"note: some decoders are compiled at their first use: {', '.join(sorted(' '.join(pair) for pair in missing))}")


if __name__ == "__main__":
    main()
