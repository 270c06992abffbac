"""Counter-based random numbers: each is a function of a seed and two integers.

A draw does not depend on earlier ones, so a run cut into any number of calls gives the same bytes, and integer arithmetic gives the same
bits on every machine. The mixer is the finaliser of SplitMix64 [Steele, Lea, Flood, OOPSLA 2014].
"""

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@numba.njit(cache=True, inline="always")
def mix(x):
    """Return 64 well mixed bits of an unsigned 64-bit integer."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, inline="always")
def draw(seed, a, b):
    """Return 64 bits for the pair (a, b)."""
    first = mix(np.uint64(seed) + _GOLDEN * (np.uint64(a) + np.uint64(1)))
    return mix(first + _GOLDEN * (np.uint64(b) + np.uint64(1)))


@numba.njit(cache=True, inline="always")
def unit(seed, a, b):
    """Return a number in [0, 1) for the pair (a, b): the top 53 bits of ``draw``."""
    return np.float64(draw(seed, a, b) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True)
def units(seed, a, count):
    """Return the numbers (count,) float64 in [0, 1) of the pairs (a, 0) .. (a, count - 1)."""
    out = np.empty(count, np.float64)
    for k in range(count):
        out[k] = unit(seed, a, k)
    return out


@numba.njit(cache=True)
def units_of(seed, a, b):
    """Return the numbers (n,) float64 in [0, 1) of the pairs of two integer columns (n,)."""
    out = np.empty(a.shape[0], np.float64)
    for k in range(a.shape[0]):
        out[k] = unit(seed, a[k], b[k])
    return out


@numba.njit(cache=True, inline="always")
def power(base, exponent):
    """Return ``base ** exponent`` for an integer exponent >= 0 by multiplications alone, which all machines round alike."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
