"""Front and knee against their definitions, and by hand."""

import numpy as np
import pytest

from editkit.sweeps.pareto import front, knee


def test_what_is_beaten_in_both_is_not_on_the_front():
    points = [(0.0, 1.0), (0.2, 0.8), (0.2, 0.9), (0.1, 0.9), (0.5, 0.5), (0.5, 0.5), (0.4, 0.4)]
    # (0.2, 0.8) and (0.1, 0.9) are as good as (0.2, 0.9) in one and worse in the other; the second (0.5, 0.5) adds nothing
    assert front(points) == [0, 2, 4]
    assert front([None, (0.3, 0.3), None]) == [1] and front([None]) == [] == front([])


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_its_definition_says(seed):
    points = np.random.default_rng(seed).integers(0, 8, (40, 2)) / 8
    as_good = (points[:, None] >= points[None]).all(-1)
    better = as_good & (points[:, None] > points[None]).any(-1)
    best = points[~better.any(0)]
    _, first = np.unique(points, axis=0, return_index=True)
    expected = [place for place in first.tolist() if (points[place] == best).all(1).any()]
    assert front([tuple(point) for point in points.tolist()]) == expected


def test_of_equal_points_the_smallest_step_is_on_the_front():
    points = [(0.0, 1.0), (0.0, 1.0), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]
    assert front(points, [0.0, 0.25, 4.0, 1.0, 2.0]) == [0, 3]
    assert front(points, [0.0, 0.25, 2.0, 2.0, 2.0]) == [0, 2]


def test_the_knee_is_farthest_beyond_the_chord():
    # scaled to [0, 1]: (0, 1), (0.5, 0.9), (0.75, 0.5), (1, 0); beyond x + y = 1 by 0.4, 0.25
    points = [(0.0, 1.0), (0.4, 0.95), (0.6, 0.75), (0.8, 0.5)]
    assert knee(points, front(points)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_knee_by_distances_to_the_line(seed):
    draws = np.random.default_rng(seed)
    x, y = np.sort(draws.random(9)), np.sort(draws.random(9))[::-1] * 50
    scaled = np.stack([(x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])], 1)
    along = np.array([1.0, -1.0])
    distance = [along[0] * point[1] - along[1] * point[0] for point in scaled - scaled[0]]  # cross product: + is beyond
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    assert knee(points, front(points)) == (int(np.argmax(distance)) if max(distance) > 1e-9 else None)


def test_units_do_not_move_the_knee():
    points = [(0.0, 1.0), (0.4, 0.95), (0.6, 0.75), (0.8, 0.5)]
    stretched = [(7 * x - 3, 0.01 * y) for x, y in points]
    assert knee(stretched, front(stretched)) == 1


def test_a_front_without_a_bend_has_no_knee():
    for points in (
        [],
        [(0.0, 1.0)] * 3,
        [(0.0, 1.0), (1.0, 0.0), (1.0, 0.0)],
        [(0.0, 1.0), (1.0, 0.0)],
        [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)],
        [(0.0, 1.0), (0.2, 0.2), (1.0, 0.0)],
    ):
        assert knee(points, front(points)) is None
