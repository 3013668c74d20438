"""Hamming distances, balls, precision and recall against loops in Python."""

import numpy as np
import pytest

from numpyro_ebm import plots, retrieval

RNG = np.random.default_rng(0)
CODES, LABELS = RNG.integers(0, 2, (40, 11)), RNG.integers(0, 3, 40)
QUERIES, QUERY_LABELS = RNG.integers(0, 2, (7, 11)), np.array([0, 1, 2, 0, 1, 2, 3])


def distances():
    return np.array([[(q != c).sum() for c in CODES] for q in QUERIES])


def test_distances_and_balls():
    assert np.array_equal(retrieval.hamming_distances(QUERIES, CODES), distances())
    assert np.array_equal(retrieval.hamming_distances(CODES, CODES).diagonal(), np.zeros(40))
    assert np.array_equal(retrieval.hamming_ball(QUERIES, CODES, 3), distances() <= 3)
    wide = RNG.integers(0, 2, (3, 300), np.uint8)  # more bits than a byte counts
    assert retrieval.hamming_distances(wide, 1 - wide).diagonal().tolist() == [300] * 3


def test_precision_and_recall():
    curve = retrieval.precision_recall(QUERIES, QUERY_LABELS, CODES, LABELS)
    assert curve.radius.tolist() == list(range(12))
    for radius in curve.radius:
        precision, recall = [], []
        for near, label in zip(distances() <= radius, QUERY_LABELS, strict=True):
            hits, relevant = (near & (label == LABELS)).sum(), (label == LABELS).sum()
            precision.append(hits / near.sum() if near.any() else 0)
            recall += [hits / relevant] if relevant else []
        np.testing.assert_allclose(curve.precision[radius], np.mean(precision))
        np.testing.assert_allclose(curve.recall[radius], np.mean(recall))
    np.testing.assert_allclose(curve.num_retrieved[-1], 40)
    figure = plots.plot_precision_recall({"codes": curve})
    assert len(figure.axes[0].lines) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((QUERIES + 1, QUERY_LABELS, CODES, LABELS), "`queries` to be bits"),
        ((QUERIES, QUERY_LABELS, CODES[0], LABELS), "`codes` to be bits"),
        ((QUERIES[:, :5], QUERY_LABELS, CODES, LABELS), "as many bits; got 5 and 11"),
        ((QUERIES, QUERY_LABELS[:2], CODES, LABELS), r"`query_labels` of shape \(7,\)"),
        ((QUERIES, QUERY_LABELS, CODES, LABELS[:2]), r"`labels` of shape \(40,\)"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval.precision_recall(*arguments)


def test_a_negative_radius_and_no_curves_are_refused():
    with pytest.raises(ValueError, match="`radius` of at least 0"):
        retrieval.hamming_ball(QUERIES, CODES, -1)
    with pytest.raises(ValueError, match="at least one curve"):
        plots.plot_precision_recall({})
