"""The state of flows that the sequence kernel updates: the types of its arrays."""

from typing import NamedTuple

import numpy as np

_STATE = ("expected", "slack", "mtu", "response", "seen", "response_seen", "bound", "bound_by", "doubtful", "acknowledged", "contested")
FLOW = np.dtype([(name, np.int64) for name in (*_STATE, "requests", "last_ts", "head", "tail")])
_NUMBERS = ("ts", "flow", "opcode", "psn", "ack_psn", "syndrome", "dma_bytes", "payload_bytes")
PACKET = np.dtype([(name, np.int64) for name in _NUMBERS])
PENDING = np.dtype([("psn", np.int64), ("ts", np.int64), ("flags", np.int64)])

COUNTS = ("acks_ambiguous", "acks_unmatched", "requests_repeated", "requests_ambiguous", "requests_expired", "requests_dropped", "restarts")


class Requesters(NamedTuple):
    """The flows that have sent requests; all arrays int64.

    Of address pair p they are ``flows[at[p] :][: known[p]]``, the ``free[p]`` unbound ones first; at, free, known: (pairs,).
    pair, opposite: (flows,) the flow's pair and that of the other direction, -1 = none.
    """

    pair: np.ndarray
    opposite: np.ndarray
    at: np.ndarray
    flows: np.ndarray
    free: np.ndarray
    known: np.ndarray


class Tracker(NamedTuple):
    """The state of one device's flows, updated in place.

    flows: (flows,) FLOW; pending: (places,) PENDING, the waiting requests of a flow between its ``head`` and ``tail``, with room for
    what comes; counts: (COUNTS,) int64.
    """

    flows: np.ndarray
    pending: np.ndarray
    requesters: Requesters
    counts: np.ndarray


def new_flows(number: int) -> np.ndarray:
    """Return the initial state of flows."""
    flows = np.zeros(number, FLOW)
    for name in ("expected", "response", "bound", "bound_by", "doubtful", "acknowledged"):
        flows[name] = -1
    return flows
