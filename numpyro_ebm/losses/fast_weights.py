"""Persistent contrastive divergence with fast weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution, Kernel
from numpyro_ebm.losses.chains import (
    advance_persistent,
    negative_energy,
    plus_free,
)
from numpyro_ebm.losses.persistent import PersistentContrastiveDivergence
from numpyro_ebm.losses.rows import row_mean


class FastPersistentContrastiveDivergence(PersistentContrastiveDivergence):
    r"""FPCD: persistent chains on parameters that move away from where the chains are.

    .. math:: \tilde x_c \sim T^k_{\theta + f}, \qquad
        g = -\frac{1}{B} \sum_b \nabla E_\theta(x_b)
        + \frac{1}{C} \sum_c \nabla E_\theta(\tilde x_c), \qquad
        f \leftarrow \text{decay} \cdot f + \text{fast\_step\_size} \cdot g

    The chains run on the parameters plus the fast weights f, which learn at their own rate and
    decay: they raise the energy where the chains stay and so drive them on. The parameters follow
    g, the contrast of PCD at the slow energies. Biased: chains on other parameters are no samples
    of the model, however small the learning rate; the bias vanishes with ``fast_step_size``. The
    fast weights are those of the distribution's arrays (weights, biases, fields, couplings), but
    for those named ``scale``, which must stay positive. Masked observations do not count in g.

    The model declares chains and fast weights with
    ``persistent_chains(name, num_chains, rbm, fast_weights=True)``. The value of the loss is that
    of :class:`PersistentContrastiveDivergence`.

    Args:
        num_steps: Steps of the chains at each update.
        fast_step_size: Learning rate of the fast weights, for the gradient per observation.
        decay: Factor of the fast weights at each update, from 0 to less than 1.
        kernel: As in :class:`PersistentContrastiveDivergence`.
        num_particles: Must be 1.

    Raises:
        ValueError: ``num_steps`` is not a positive integer, ``fast_step_size`` negative, ``decay``
            outside [0, 1), or no chains or fast weights reach the loss.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(data):
        ...     weights = numpyro.param("weights", 0.01 * jnp.ones((4, 2)))
        ...     rbm = ebm.RBM(weights, numpyro.param("bias", jnp.zeros(4)), jnp.zeros(2))
        ...     ebm.persistent_chains("chains", 20, rbm, fast_weights=True)
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("v", rbm, obs=data)
        >>> loss = ebm.FastPersistentContrastiveDivergence(fast_step_size=0.05)
        >>> svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.1), loss)
        >>> result = svi.run(jax.random.key(0), 20, jnp.eye(4), progress_bar=False)
        >>> sorted(result.state.mutable_state["chains"]["fast_weights"])
        ['hidden_units.logits', 'visible_units.logits', 'weights']

    References:
        Tieleman & Hinton (2009), "Using Fast Weights to Improve Persistent Contrastive
        Divergence", section 4 (a decay of 19/20).
    """

    def __init__(
        self,
        num_steps: int = 1,
        *,
        fast_step_size: float,
        decay: float = 0.95,
        kernel: Kernel | None = None,
        num_particles: int = 1,
    ) -> None:
        super().__init__(num_steps, kernel=kernel, num_particles=num_particles)
        name = type(self).__name__
        if not isinstance(fast_step_size, int | float) or not 0 <= fast_step_size < float("inf"):
            raise ValueError(
                f"{name}: expected `fast_step_size` to be a nonnegative number; got "
                f"{fast_step_size!r}."
            )
        if not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"{name}: expected `decay` from 0 to less than 1; got {decay!r}.")
        self.fast_step_size, self.decay = float(fast_step_size), float(decay)

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Each observation against chains on the parameters plus the fast weights."""
        state, kernel = self._chains(name, distribution, mutable)
        if "fast_weights" not in state:
            raise ValueError(
                f"{type(self).__name__}: expected fast weights for site '{name}'; declare them by "
                'ebm.persistent_chains("chains", num_chains, rbm, fast_weights=True).'
            )
        fast = state["fast_weights"]
        frozen = jax.lax.stop_gradient(distribution)
        displaced = plus_free(frozen, fast)
        chain = advance_persistent(rng_key, state, displaced, self.num_steps, kernel)
        chain = frozen.refresh(chain)

        def log_prob(value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
            def contrast(change: Any) -> Float[Array, ""]:
                slow = plus_free(frozen, change)
                data = row_mean(distribution, slow.energy(value))
                return negative_energy(slow, chain, kernel).mean() - data

            gradient = jax.grad(contrast)(jax.tree.map(jnp.zeros_like, fast))
            state["fast_weights"] = {
                leaf: (self.decay * fast[leaf] + self.fast_step_size * new).astype(new.dtype)
                for leaf, new in gradient.items()
            }
            return negative_energy(distribution, chain, kernel).mean(0) - distribution.energy(value)

        return log_prob
