"""Generalized pseudolikelihood: blocks of units given all others."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.losses.checks import require_states
from numpyro_ebm.losses.conditionals import flat_sites, inside_support
from numpyro_ebm.losses.loss import EnergyLoss
from numpyro_ebm.trainable import log_conditional

_MAX_STATES = 2**12
"""Most joint states of a block."""
_CHUNK_FLOATS = 2**22
"""Energies of blocks that are held at once."""


class BlockPseudoLikelihood(EnergyLoss):
    r"""Negative log-pseudolikelihood of blocks of discrete units; log Z cancels.

    .. math:: -\sum_B \log p(x_B \mid x_{-B}), \qquad
        p(x_B \mid x_{-B}) = \frac{e^{-E(x)}}{\sum_s e^{-E(x_{-B}, x_B = s)}}

    in nats, summed over observations, with a sum over the :math:`q^{|B|}` joint states of each
    block. Single sites give :class:`PseudoLikelihood`, one block of all sites the exact
    likelihood; blocks in between are consistent too, and come closer to the likelihood the more of
    the dependence is within them. Blocks may overlap. Sites in no block are only conditioned on:
    one block of label units is the conditional likelihood of the labels, with which an RBM becomes
    a classifier.

    Args:
        blocks: Sequences of sites, numbered in the flattened event; or one number, the size of
            blocks of consecutive sites (the last may be smaller).
        random: With a number, whether blocks are of random sites, drawn anew at each update (the
            same for all observations): an unbiased estimate of the mean over such partitions.
        num_particles: Draws from the guide for one estimate.
        vectorize_particles: Whether to ``vmap`` over them.

    Raises:
        TypeError: ``blocks`` are no integers.
        ValueError: A block is empty or holds a site twice, or ``random`` comes with given blocks;
            in training, a site does not exist, a block has more than 4096 joint states, or the
            units are not discrete.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(data):
        ...     weights = numpyro.param("weights", 0.01 * jnp.ones((4, 2)))
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("v", ebm.RBM(weights, jnp.zeros(4), jnp.zeros(2)), obs=data)
        >>> data = jnp.array([[1, 1, 0, 0], [1, 1, 0, 1]])
        >>> loss = ebm.BlockPseudoLikelihood([[0, 1], [2, 3]])
        >>> svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.1), loss)
        >>> result = svi.run(jax.random.key(0), 50, data, progress_bar=False)
        >>> bool(result.losses[-1] < result.losses[0])
        True

    References:
        Huang & Ogata (2002), "Generalized Pseudo-Likelihood Estimates for Markov Random Fields on
        Lattice"; Goodfellow, Bengio & Courville (2016), *Deep Learning*, section 18.3; Larochelle
        & Bengio (2008), "Classification using Discriminative Restricted Boltzmann Machines".
    """

    def __init__(
        self,
        blocks: int | Sequence[Sequence[int]],
        *,
        random: bool = False,
        num_particles: int = 1,
        vectorize_particles: Any = True,
    ) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.blocks, self.random = _parse(type(self).__name__, blocks), random
        if random and not isinstance(self.blocks, int):
            raise ValueError(
                f"{type(self).__name__}: expected `blocks` to be a block size with `random`; got "
                f"{len(self.blocks)} given blocks."
            )

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Sum over blocks, those of one size together."""
        states = require_states(self, name, distribution)
        values, allowed = (part.reshape(-1, part.shape[-1]) for part in states)
        groups = self._groups(rng_key, name, *values.shape)

        def log_prob(value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
            present = (flat_sites(value, distribution)[..., None] == values) & allowed
            label = jnp.argmax(present, -1)
            total = sum(_group_terms(distribution, value, label, group) for group in groups)
            return inside_support(jnp.asarray(total), value, distribution)

        return log_prob

    def _groups(
        self, rng_key: Key[Array, ""], name: str, num_units: int, num_states: int
    ) -> list[Int[Array, "blocks k"]]:
        """Blocks, stacked by their size."""
        owner = type(self).__name__
        if isinstance(self.blocks, int):
            order = jnp.arange(num_units)
            order = jax.random.permutation(rng_key, order) if self.random else order
            size = min(self.blocks, num_units)
            whole = num_units // size * size
            groups = [order[:whole].reshape(-1, size), order[whole:].reshape(1, -1)]
            groups = [group for group in groups if group.size]
        else:
            top = max(max(block) for block in self.blocks)
            if top >= num_units:
                raise ValueError(
                    f"{owner}: expected sites from 0 to {num_units - 1} in `blocks` for the model "
                    f"at site '{name}'; got {top}."
                )
            sizes = sorted({len(block) for block in self.blocks})
            stacks = [[block for block in self.blocks if len(block) == size] for size in sizes]
            groups = [jnp.asarray(stack) for stack in stacks]
        largest = max(group.shape[1] for group in groups)
        if num_states**largest > _MAX_STATES:
            raise ValueError(
                f"{owner}: expected blocks of at most {_MAX_STATES} joint states at site '{name}'; "
                f"got {num_states}^{largest}. Use smaller blocks, or ebm.PseudoLikelihood()."
            )
        return groups


def _group_terms(
    distribution: EnergyDistribution,
    value: Num[Array, "*shape"],
    label: Int[Array, "*batch n"],
    group: Int[Array, "blocks k"],
) -> Float[Array, "*batch"]:
    """Sum over blocks of one size of their log probability given all other sites, in nats."""
    states = distribution.unit_states
    num_states = 1 if states is None else states.values.shape[-1]
    place = num_states ** jnp.arange(group.shape[1])

    @jax.checkpoint
    def terms(blocks):
        energies = distribution.site_energies(value, blocks)
        index = (label[..., blocks] * place).sum(-1)
        present = index[..., None] == jnp.arange(energies.shape[-1])
        return log_conditional(energies, present).sum(-1)

    if num_states ** group.shape[1] * max(1, label[..., 0].size) * len(group) <= _CHUNK_FLOATS:
        return terms(group)
    return jax.lax.map(lambda block: terms(block[None]), group).sum(0)


def _parse(owner: str, blocks: Any) -> int | list[list[int]]:
    """A block size, or lists of distinct nonnegative integers."""
    try:
        size = operator.index(blocks)
    except TypeError:
        size = None
    if size is not None:
        if isinstance(blocks, bool) or size < 1:
            raise ValueError(
                f"{owner}: expected `blocks` to be a positive block size or sequences of sites; "
                f"got {blocks!r}."
            )
        return size
    try:
        parsed = [[operator.index(site) for site in block] for block in blocks]
    except TypeError as error:
        raise TypeError(
            f"{owner}: expected `blocks` to be an integer or sequences of integers; got {blocks!r}."
        ) from error
    for block in parsed or [[]]:
        if not block or min(block) < 0 or len(set(block)) < len(block):
            raise ValueError(
                f"{owner}: expected every block to hold distinct sites, numbered from 0; got "
                f"{block}."
            )
    return parsed
