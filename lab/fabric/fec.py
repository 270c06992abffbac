"""Forward error correction of a link from its bit error ratio: RS(544, 514) over 10-bit symbols, as in 400G and 800G Ethernet.

A codeword has 544 symbols and corrects 15 wrong ones. With independent bit errors a symbol is wrong with 1 - (1 - BER)^10, the number of
wrong symbols in a codeword is binomial, and a codeword with more than 15 is lost. Codewords pass all the time, idle or not.
"""

import numba
import numpy as np

from .rng import power

SYMBOLS, SYMBOL_BITS, CORRECTED_MAX = 544, 10, 15
CODEWORD_BITS = SYMBOLS * SYMBOL_BITS
MESSAGE_BITS = 514 * SYMBOL_BITS
# 256b/257b blocks: 257 bits on the line for 256 of the frame.
FRAME_BITS = MESSAGE_BITS * 256 / 257
BINS = CORRECTED_MAX + 2  # by number of wrong symbols; the last bin: lost


@numba.njit(cache=True)
def chances(bit_error_ratio):
    """Return the chances (BINS,) float64 of 0 .. 15 wrong symbols and of more in a codeword; products alone, so all machines agree."""
    wrong = 0.0
    # 1 - (1 - b)^10 by Horner on (1 - wrong)(1 - b), which does not cancel for small b.
    for _ in range(SYMBOL_BITS):
        wrong = wrong + bit_error_ratio - wrong * bit_error_ratio
    out = np.zeros(BINS, np.float64)
    if wrong >= 1.0:
        out[BINS - 1] = 1.0
        return out
    term = power(1.0 - wrong, SYMBOLS)
    for j in range(SYMBOLS + 1):
        out[min(j, BINS - 1)] += term
        term *= (SYMBOLS - j) / (j + 1.0) * wrong / (1.0 - wrong)
    return out


def codewords(speed_bps: float, span_ns: int) -> float:
    """Return how many codewords a link carries in a time."""
    return speed_bps * span_ns / 1e9 / FRAME_BITS


def packet_loss(bit_error_ratio: float, packet_bytes: int) -> float:
    """Return the chance that a packet overlaps a lost codeword, starting at any offset in one."""
    lost = float(chances(bit_error_ratio)[-1])
    return min(1.0, lost * (packet_bytes * 8 / FRAME_BITS + 1))
