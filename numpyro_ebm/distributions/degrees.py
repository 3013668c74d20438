"""Which visible units each unit of a masked autoencoder sees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool


class Degrees:
    """How many units each unit of a masked autoencoder may depend on.

    Args:
        ordering: Place of each visible unit in the order, a permutation of 1 to d.
        hidden: For each hidden layer, the degrees of its units, from 1 to d - 1: a unit of degree
            m sees the first m visible units.

    Raises:
        ValueError: ``ordering`` is no permutation of 1 to d, or a degree is out of range.

    Example:
        >>> import numpyro_ebm as ebm
        >>> degrees = ebm.MADE.Degrees([1, 2, 3], [[1, 2]])
        >>> degrees.masks[0].astype(int)  # hidden unit 2 sees visible units 1 and 2
        array([[1, 1],
               [0, 1],
               [0, 0]])

    References:
        Germain, Gregor, Murray & Larochelle (2015), "MADE: Masked Autoencoder for Distribution
        Estimation", sections 3 and 4.
    """

    def __init__(self, ordering: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
        self.ordering = tuple(int(place) for place in ordering)
        self.hidden = tuple(tuple(int(degree) for degree in layer) for layer in hidden)
        d = len(self.ordering)
        if d == 0 or sorted(self.ordering) != list(range(1, d + 1)):
            raise ValueError(
                f"Degrees: expected `ordering` to be a permutation of 1 to {d}; got "
                f"{self.ordering}."
            )
        largest = max(1, d - 1)
        bad = [m for layer in self.hidden for m in layer if not 1 <= m <= largest]
        if bad or not self.hidden or not all(self.hidden):
            raise ValueError(
                "Degrees: expected `hidden` to be one or more layers of degrees from 1 to "
                f"{largest}; got {bad[:6] if bad else self.hidden}."
            )
        self._hash = hash((self.ordering, self.hidden))

    @classmethod
    def spread(cls, num_visible: int, hidden_sizes: Sequence[int]) -> Degrees:
        """Visible units in the order of the vector, degrees spread evenly over every layer.

        Args:
            num_visible: d, number of visible units.
            hidden_sizes: Number of units of each hidden layer.
        """
        largest = max(1, num_visible - 1)
        return cls(
            range(1, num_visible + 1),
            [[1 + k * largest // size for k in range(size)] for size in hidden_sizes],
        )

    @classmethod
    def random(
        cls,
        seed: int,
        num_visible: int,
        hidden_sizes: Sequence[int],
        *,
        ordering: Sequence[int] | None = None,
    ) -> Degrees:
        """Draw the order of the visible units, and degrees no lower than the layer below allows.

        Args:
            seed: Seed of NumPy's generator: the same degrees for the same seed.
            num_visible: d, number of visible units.
            hidden_sizes: Number of units of each hidden layer.
            ordering: Place of each visible unit in the order, if it is not to be drawn.
        """
        rng = np.random.default_rng(seed)
        if ordering is None:
            ordering = (1 + rng.permutation(num_visible)).tolist()
        hidden, lowest, largest = [], 1, max(1, num_visible - 1)
        for size in hidden_sizes:
            hidden.append(rng.integers(lowest, largest, size, endpoint=True).tolist())
            lowest = min(hidden[-1], default=1)
        return cls(ordering, hidden)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of units in each layer, visible ones first and last."""
        d = len(self.ordering)
        return d, *(len(layer) for layer in self.hidden), d

    @cached_property
    def order(self) -> np.ndarray:
        """Visible units, first to last."""
        return np.argsort(self.ordering).astype(np.int32)  # the same with and without 64 bits

    @cached_property
    def masks(self) -> tuple[Bool[np.ndarray, "inputs outputs"], ...]:
        """Which weights are there, for each layer of weights."""
        layers = [np.asarray(m) for m in (self.ordering, *self.hidden)]
        masks = [below[:, None] <= above for below, above in pairwise(layers)]
        return *masks, layers[-1][:, None] < layers[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Degrees) and (self.ordering, self.hidden) == (
            other.ordering,
            other.hidden,
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Degrees of layers of {self.sizes} units"
