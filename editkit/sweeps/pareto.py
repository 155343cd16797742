"""The Pareto front of forgetting and retention, and its knee.

>>> points = [(0.0, 1.0), (0.5, 0.95), (0.4, 0.9), (0.9, 0.5), (1.0, 0.0)]
>>> front(points), knee(points, front(points))
([0, 1, 3, 4], 1)
"""

from collections.abc import Sequence
from math import sqrt

Pair = tuple[float, float]


def front(points: Sequence[Pair | None], steps: Sequence[float] = ()) -> list[int]:
    """Those points that no other one beats: as high in both coordinates, and higher in one. By rising first coordinate.

    Of equal points the one with the smallest step is on it, the first where `steps` says nothing. None is a point that is not known, and
    not on the front.
    """
    kept: dict[Pair, int] = {}
    for place in sorted(range(len(points)), key=lambda place: steps[place] if steps else place):
        if (point := points[place]) is not None:
            kept.setdefault(point, place)

    def beaten(point: Pair) -> bool:
        return any(all(a >= b for a, b in zip(other, point, strict=True)) and other != point for other in kept)

    return [kept[point] for point in sorted(kept) if not beaten(point)]


def knee(points: Sequence[Pair | None], front: Sequence[int]) -> int | None:
    """The point of the front that lies farthest beyond the chord of its ends, each coordinate scaled to go from 0 to 1.

    That is where going on along the front begins to cost more than it brings (Satopaa et al. 2011, "Finding a kneedle in a
    haystack", without smoothing). None where no point lies beyond the chord: a front of two points, or one that bends inwards.
    """
    found = [point for place in front if (point := points[place]) is not None]
    if len(set(found)) < 3:
        return None
    (left, high), (right, low) = found[0], found[-1]
    beyond = [((x - left) / (right - left) + (y - low) / (high - low) - 1) / sqrt(2) for x, y in found]
    best = max(range(len(found)), key=lambda place: beyond[place])
    return front[best] if beyond[best] > 1e-9 else None
