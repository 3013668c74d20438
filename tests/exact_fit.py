"""How well draws fit a distribution that is known by enumeration."""

import numpy as np


def chi_square_score(counts, expected):
    """Pearson's statistic in standard deviations above its mean, rare cells pooled."""
    order = np.argsort(expected)
    rare = order[np.cumsum(expected[order]) < 10]
    keep = np.setdiff1d(order, rare)
    if len(rare):
        counts = np.append(counts[keep], counts[rare].sum())
        expected = np.append(expected[keep], expected[rare].sum())
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


def fit_score(exact, draws, num_units=6):
    """Largest chi-square score of draws against a `Brute` model.

    Three tables are compared: the states of the first units together, those of the last, and the
    energy with the sum of all units.
    """
    flat = np.asarray(draws).reshape(len(draws), -1)
    low = min(exact.values)
    order = np.argsort(_code(exact.visible - low))
    place = np.searchsorted(_code(exact.visible - low)[order], _code(flat - low))
    index = order[place]
    n = flat.shape[1]
    width = min(n, num_units)
    energy = np.round(exact.energies, 4)
    cells = [
        _code(exact.visible[:, :width] - low),
        _code(exact.visible[:, n - width :] - low),
        _code(np.stack([np.unique(x, return_inverse=True)[1] for x in
                        (_levels(energy), exact.visible.sum(1))], 1), 1000),
    ]  # fmt: skip
    scores = []
    for cell in cells:
        cell = np.unique(cell, return_inverse=True)[1]
        expected = len(flat) * np.bincount(cell, exact.probs)
        counts = np.bincount(cell[index], minlength=len(expected))
        scores.append(chi_square_score(counts, expected))
    return max(scores)


def _code(states, base=8):
    """One number for each row."""
    return (states.astype(np.int64) * base ** np.arange(states.shape[1], dtype=np.int64)).sum(1)


def _levels(energy, num_levels=30):
    """Energies, in classes where there are many different ones."""
    if len(np.unique(energy)) <= num_levels:
        return energy
    return np.searchsorted(np.quantile(energy, np.linspace(0, 1, num_levels)[1:-1]), energy)
