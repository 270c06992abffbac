"""The collectors, one line each."""

from .base import Collector
from .hft import HFT
from .host import HOST
from .millisampler import MILLISAMPLER
from .otlp import OTLP
from .packets import PACKETS
from .recording import RECORDING

COLLECTORS: dict[str, Collector] = {
    HOST.name: HOST,
    HFT.name: HFT,
    OTLP.name: OTLP,
    PACKETS.name: PACKETS,
    MILLISAMPLER.name: MILLISAMPLER,
    RECORDING.name: RECORDING,
}
