"""Retrieval by binary codes: Hamming distances, Hamming balls, precision and recall."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer

__all__ = ["PrecisionRecall", "hamming_ball", "hamming_distances", "precision_recall"]


class PrecisionRecall(NamedTuple):
    """How well Hamming balls of growing radius retrieve what is relevant.

    Attributes:
        radius: Radii from 0 to the number of bits.
        precision: Relevant rows among those retrieved, mean over the queries; a query that
            retrieves none counts as 0.
        recall: Retrieved rows among the relevant, mean over the queries that have such.
        num_retrieved: Rows retrieved, mean over the queries.
    """

    radius: Int[np.ndarray, " radii"]
    precision: Float[np.ndarray, " radii"]
    recall: Float[np.ndarray, " radii"]
    num_retrieved: Float[np.ndarray, " radii"]


def hamming_distances(
    queries: Integer[ArrayLike, "queries bits"], codes: Integer[ArrayLike, "rows bits"]
) -> Int[Array, "queries rows"]:
    """Count the bits in which each query differs from each code.

    Args:
        queries: Bits, 0 or 1.
        codes: Likewise, with as many bits.

    Raises:
        ValueError: The codes are not bits, or have different lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_ebm import retrieval
        >>> retrieval.hamming_distances(jnp.array([[1, 0, 1]]), jnp.array([[1, 1, 0], [1, 0, 1]]))
        Array([[2, 0]], dtype=int32)
    """
    packed = [_packed(queries, "queries"), _packed(codes, "codes")]
    _check_same_length(queries, codes)
    return jax.lax.map(partial(_distances, codes=packed[1]), packed[0])


def hamming_ball(
    queries: Integer[ArrayLike, "queries bits"],
    codes: Integer[ArrayLike, "rows bits"],
    radius: int,
) -> Bool[Array, "queries rows"]:
    """Tell which codes lie within a Hamming distance of each query.

    Args:
        queries: Bits, 0 or 1.
        codes: Likewise, with as many bits.
        radius: Largest number of bits that differ.

    Raises:
        ValueError: ``radius`` is negative, the codes are not bits, or have different lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_ebm import retrieval
        >>> codes = jnp.array([[1, 1, 0], [1, 0, 1], [0, 0, 1]])
        >>> retrieval.hamming_ball(codes[1:2], codes, radius=1)
        Array([[False,  True,  True]], dtype=bool)
    """
    if not radius >= 0:
        raise ValueError(f"hamming_ball: expected `radius` of at least 0; got {radius!r}.")
    return hamming_distances(queries, codes) <= radius


def precision_recall(
    queries: Integer[ArrayLike, "queries bits"],
    query_labels: Integer[ArrayLike, " queries"],
    codes: Integer[ArrayLike, "rows bits"],
    labels: Integer[ArrayLike, " rows"],
) -> PrecisionRecall:
    """Precision and recall of Hamming balls of every radius, for rows with the query's label.

    Args:
        queries: Bits of the queries.
        query_labels: Their labels.
        codes: Bits of the rows that are searched.
        labels: Their labels.

    Raises:
        ValueError: The codes are not bits, or shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_ebm import retrieval
        >>> codes, labels = jnp.array([[0, 0], [0, 1], [1, 1]]), jnp.array([0, 0, 1])
        >>> curve = retrieval.precision_recall(codes[:1], labels[:1], codes, labels)
        >>> curve.precision.round(2).tolist(), curve.recall.tolist()
        ([1.0, 1.0, 0.67], [0.5, 1.0, 1.0])

    References:
        Salakhutdinov & Hinton (2009), "Semantic Hashing", International Journal of Approximate
        Reasoning 50, section 4.
    """
    packed = [_packed(queries, "queries"), _packed(codes, "codes")]
    _check_same_length(queries, codes)
    for name, part, rows in (("query_labels", query_labels, queries), ("labels", labels, codes)):
        if np.shape(part) != np.shape(rows)[:1]:
            raise ValueError(
                f"retrieval: expected `{name}` of shape {np.shape(rows)[:1]}; got {np.shape(part)}."
            )
    num_bits = np.shape(codes)[1]
    counts = _counts(packed, jnp.asarray(query_labels), jnp.asarray(labels), num_bits)
    retrieved, hits = np.cumsum(np.asarray(counts, np.int64), axis=-1).transpose(1, 0, 2)
    precision = hits / np.maximum(retrieved, 1)
    relevant = hits[:, -1:]
    recall = (hits / np.maximum(relevant, 1))[relevant[:, 0] > 0]
    mean = partial(np.mean, axis=0)
    return PrecisionRecall(np.arange(num_bits + 1), mean(precision), mean(recall), mean(retrieved))


def _packed(codes: Any, name: str) -> Array:
    array = np.asarray(codes)
    if array.ndim != 2 or not array.size or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"retrieval: expected `{name}` to be bits, 0 or 1, of shape (rows, bits); got shape "
            f"{array.shape} of type {array.dtype}."
        )
    return jnp.asarray(np.packbits(array.astype(np.uint8), axis=1))


def _check_same_length(queries: Any, codes: Any) -> None:
    lengths = np.shape(queries)[1], np.shape(codes)[1]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"retrieval: expected `queries` and `codes` with as many bits; got {lengths[0]} and "
            f"{lengths[1]}."
        )


def _distances(query: Array, codes: Array) -> Int[Array, " rows"]:
    return jax.lax.population_count(query ^ codes).astype(jnp.int32).sum(-1)


@partial(jax.jit, static_argnames="num_bits")
def _counts(
    packed: list[Array], query_labels: Array, labels: Array, num_bits: int
) -> Int[Array, "queries 2 radii"]:
    """How many rows, and how many relevant ones, there are at each distance from each query."""

    def of_query(query: tuple[Array, Array]) -> Int[Array, "2 radii"]:
        code, label = query
        distances = _distances(code, packed[1])
        relevant = (labels == label).astype(jnp.int32)
        count = partial(jnp.bincount, distances, length=num_bits + 1)
        return jnp.stack([count(), count(weights=relevant)])

    return jax.lax.map(of_query, (packed[0], query_labels))
