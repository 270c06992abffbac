"""The registry of the collectors, one line each."""

from .base import Collector
from .gnmi.config import GNMI
from .hft.config import HFT
from .host.interfaces import HOST
from .inventory.files import INVENTORY
from .millisampler.table import MILLISAMPLER
from .otlp.config import OTLP
from .packets.receiver import PACKETS
from .recordings.recording import RECORDING
from .sflow.receiver import SFLOW

COLLECTORS: dict[str, Collector] = {
    HOST.name: HOST,
    # Before packets, which takes any capture that no other collector recognises.
    SFLOW.name: SFLOW,
    HFT.name: HFT,
    OTLP.name: OTLP,
    PACKETS.name: PACKETS,
    MILLISAMPLER.name: MILLISAMPLER,
    INVENTORY.name: INVENTORY,
    RECORDING.name: RECORDING,
    GNMI.name: GNMI,
}
