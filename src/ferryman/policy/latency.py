"""Latency histograms: log-linear buckets that add up, and percentiles read from them.

Each power of two is cut into eight equal buckets, so a percentile is at most one eighth too high. The idea
is Gil Tene's HdrHistogram, with three bits of precision.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["bucket_of", "percentile", "upper_bound"]

_BITS = 3
_SUB = 1 << _BITS


def bucket_of(us: int) -> int:
    """The bucket of a duration in µs; negative ones count as 0."""
    if us < _SUB:
        return max(us, 0)
    shift = us.bit_length() - 1 - _BITS
    return (shift << _BITS) + (us >> shift)


def upper_bound(bucket: int) -> int:
    """The largest duration (µs) that falls into a bucket."""
    if bucket < 2 * _SUB:
        return bucket
    shift = (bucket >> _BITS) - 1
    return ((_SUB + (bucket & (_SUB - 1)) + 1) << shift) - 1


def percentile(histogram: Mapping[int, int], fraction: float) -> int | None:
    """The duration (µs) that `fraction` (0 to 1) of the counts do not exceed; None for an empty histogram."""
    total = sum(histogram.values())
    if not total:
        return None
    rest = fraction * total
    for bucket in sorted(histogram):
        rest -= histogram[bucket]
        if rest <= 0:
            break
    return upper_bound(bucket)
