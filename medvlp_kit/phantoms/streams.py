"""Counter-based random numbers: number k of stream s is a pure function of (s, k).

Nothing is drawn "in turn", so study k is the same whoever reads it, in whatever order and batch. The generator is
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), which is a counter
passed through a mixing function and therefore vectorises over streams and counters at once.
"""

from __future__ import annotations

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORD = (1 << 64) - 1


def mix(words: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser: uint64 of any shape to uint64 of the same shape, every bit depending on every bit."""
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


def combine(*parts: int) -> int:
    """One 64-bit stream number from several integers; order matters. Plain integers: no array set-up for one key."""
    key = 0
    for part in parts:
        key = (key * 0x9E3779B97F4A7C15 + part + 0x632BE59BD9B4E019) & _WORD
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _WORD
        key ^= key >> 31
    return key


def uniforms(streams, count: int) -> np.ndarray:
    """The first `count` numbers of each stream, float32 in [0, 1): streams (S,) integers -> (S, count)."""
    streams = np.asarray(streams, dtype=np.uint64).reshape(-1, 1)
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    # 24 bits fill a float32 exactly, so every device and library reads the same number
    return (mix(streams + counters) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
