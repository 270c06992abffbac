"""The collectors, one line each."""

from .base import Collector
from .gnmi_config import GNMI
from .host import HOST
from .millisampler import MILLISAMPLER
from .packets import PACKETS
from .recording import RECORDING

COLLECTORS: dict[str, Collector] = {
    HOST.name: HOST,
    PACKETS.name: PACKETS,
    MILLISAMPLER.name: MILLISAMPLER,
    RECORDING.name: RECORDING,
    GNMI.name: GNMI,
}
