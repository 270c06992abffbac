"""The collectors, one line each."""

from .base import Collector
from .host import HOST
from .inventory import INVENTORY
from .millisampler import MILLISAMPLER
from .packets import PACKETS
from .recording import RECORDING

COLLECTORS: dict[str, Collector] = {
    HOST.name: HOST,
    PACKETS.name: PACKETS,
    MILLISAMPLER.name: MILLISAMPLER,
    INVENTORY.name: INVENTORY,
    RECORDING.name: RECORDING,
}
