"""The configuration of each command: the sections it needs, composed of the parts' own dataclasses.

A service reads and validates its own sections only, so that a collector does not load the modules of the store; ``weft check`` and
``weft up`` validate the whole file.
"""

import dataclasses
import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any, TypeVar

from ..pipeline import config
from ..pipeline.bus import Bus, BusConfig, open_bus
from ..pipeline.errors import ConfigError, ServiceError, StoreError

SECTIONS = ("bus", "collect", "process", "analyze", "dash")

# The file that is read without --config, if it exists.
DEFAULT_FILE = Path("weft.toml")

T = TypeVar("T")


def at_least_one(text: str) -> int:
    """Parse the value of an option that is at least 1, for ``argparse``."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def load(chosen: Namespace, **sections: type[Any]) -> Any:
    """Return the named sections (and ``bus``) of the configuration. Raises ``ConfigError``."""
    file = chosen.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    wanted = {"bus": BusConfig, **sections}
    fields = [(name, kind, dataclasses.field(default_factory=kind)) for name, kind in wanted.items()]
    schema = dataclasses.make_dataclass("Settings", fields, frozen=True)
    loaded = config.load(schema, file, os.environ, others=tuple(name for name in SECTIONS if name not in wanted))
    if loaded.bus.kind not in ("embedded", "kafka"):
        raise ConfigError(str(file or "WEFT_BUS__KIND"), f"bus.kind is {loaded.bus.kind!r}", "write 'embedded' or 'kafka'")
    return loaded


def everything(chosen: Namespace) -> Any:
    """Return the whole configuration. Raises ``ConfigError``."""
    from ..analytics.service import AnalyzeConfig
    from ..collectors.service import CollectConfig
    from ..dashboards.service import DashConfig
    from ..pipeline.process.service import ProcessConfig

    return load(chosen, collect=CollectConfig, process=ProcessConfig, analyze=AnalyzeConfig, dash=DashConfig)


def bus_of(chosen: Namespace, settings: Any) -> Bus:
    """Open the bus. Raises ``BusError``."""
    return open_bus(settings.bus, chosen.data)


def claim_data_folder(chosen: Namespace) -> None:
    """Create the data folder if it is missing, and check that no other Weft uses it before any service starts.

    Raises:
        ServiceError: it cannot be created.
        StoreError: another process writes the store in it.
    """
    from ..analytics.store.light_reader import is_locked

    try:
        chosen.data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(f"the data folder {chosen.data} cannot be created ({error.strerror})", "choose another with --data") from None
    store = chosen.data / "store"
    if (store / "hot.duckdb").exists() and is_locked(store):
        raise StoreError(f"another process writes {store}", "stop it, or choose another folder with --data")


def passed_on(chosen: Namespace) -> tuple[str, ...]:
    """Return the shared options as arguments for a child."""
    config_file = ("--config", str(chosen.config)) if chosen.config else ()
    return ("--data", str(chosen.data), "--log-level", chosen.log_level, *config_file)
