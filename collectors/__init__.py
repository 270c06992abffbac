"""The collectors, one line each."""

from .base import Collector
from .gnmi_config import GNMI
from .hft_config import HFT
from .host import HOST
from .inventory import INVENTORY
from .millisampler import MILLISAMPLER
from .otlp_config import OTLP
from .packets import PACKETS
from .recording import RECORDING
from .sflow import SFLOW

COLLECTORS: dict[str, Collector] = {
    HOST.name: HOST,
    # Before packets, which takes any capture that nobody else knows.
    SFLOW.name: SFLOW,
    HFT.name: HFT,
    OTLP.name: OTLP,
    PACKETS.name: PACKETS,
    MILLISAMPLER.name: MILLISAMPLER,
    INVENTORY.name: INVENTORY,
    RECORDING.name: RECORDING,
    GNMI.name: GNMI,
}
