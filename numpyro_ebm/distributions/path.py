"""The base-rate path of an RBM, for annealed importance sampling and tempering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from numpyro_ebm.base import Chain
from numpyro_ebm.units import Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.rbm import RBM

_MEAN_CHAINS = 64
_MEAN_SWEEPS = 50


class BaseRatePath:
    r"""Models with weights :math:`\beta W` between independent units and a full RBM.

    At inverse temperature :math:`\beta` the visible units interpolate in natural parameters
    between a base-rate unit and the model's own; the weights are :math:`\beta W`; the hidden units
    are the model's throughout. At :math:`\beta = 0` the units are independent, so that log Z and
    exact draws are closed forms.

    References:
        Salakhutdinov & Murray (2008), "On the Quantitative Analysis of Deep Belief Networks",
        section 4.1 (there the hidden biases are annealed too).
    """

    def __init__(self, target: RBM, base: Unit) -> None:
        self.target = target
        self.base = base

    @classmethod
    def of(cls, target: RBM, rng_key: Key[Array, ""], base: Any = None) -> BaseRatePath:
        """Choose the base: a visible unit, data, or (``None``) the model's own mean."""
        visible = target.visible_units
        if isinstance(base, Unit):
            if type(base) is not type(visible) or base.shape != visible.shape:
                raise ValueError(
                    f"RBM: expected `base` of the visible units' kind, {visible!r}; got {base!r}."
                )
            return cls(target, base)
        if base is None:
            mean, second = _own_moments(target, rng_key)
            return cls(target, visible.base_rate(mean, second))
        target.check_value(base, "base")
        if jnp.ndim(base) != 2 or jnp.shape(base)[0] == 0:
            raise ValueError(
                f"RBM: expected `base` data of shape (n, {visible.shape[0]}) with n >= 1; got "
                f"{jnp.shape(base)}."
            )
        features = visible.features(base)
        count = features.shape[0]
        prior = visible.mean(jnp.zeros(visible.num_features, features.dtype))
        mean = (features.sum(0) + prior) / (count + 1)
        return cls(target, visible.base_rate(mean, (features**2).mean(0)))

    @property
    def log_z0(self) -> Float[Array, ""]:
        """Log Z of the independent units at beta = 0, in nats."""
        hidden = self.target.hidden_units
        dtype = self.target.weights.dtype
        visible_term = self.base.log_partition(jnp.zeros(self.base.num_features, dtype))
        return visible_term + hidden.log_partition(jnp.zeros(hidden.num_features, dtype))

    def at(self, beta: Float[ArrayLike, ""]) -> RBM:
        """Return the RBM at inverse temperature ``beta``."""
        visible = self.target.visible_units.interpolate(self.base, beta)
        return self.target.with_visible(visible, coupling=beta)

    def sample(self, rng_key: Key[Array, ""], num_samples: int) -> Chain:
        """Draw chains of independent units, with their input to the hidden units cached."""
        independent = self.target.with_visible(self.base)
        return self.target.refresh(independent.init_chain(rng_key, (num_samples,)))

    def log_weight_increment(
        self, chain: Chain, beta: Float[ArrayLike, ""], beta_next: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch"]:
        """E_beta(v) - E_beta_next(v) in nats, differenced unit by unit before summing."""
        hidden, visible = self.target.hidden_units, self.target.visible_units
        gain = hidden.unit_log_partition(beta_next * chain.field)
        loss = hidden.unit_log_partition(beta * chain.field)
        colder = visible.interpolate(self.base, beta_next)
        warmer = visible.interpolate(self.base, beta)
        energy = warmer.energy(chain.visible) - colder.energy(chain.visible)
        return (gain - loss).sum(-1) + energy


jax.tree_util.register_pytree_node(
    BaseRatePath,
    lambda path: ((path.target, path.base), None),
    lambda _, children: BaseRatePath(*children),
)


@jax.jit
def _own_moments(target: RBM, rng_key: Key[Array, ""]) -> tuple[Array, Array]:
    """First and second moments of the visible features from short Gibbs chains."""
    key_init, key_run = jax.random.split(rng_key)

    def sweep(chain, key):
        return target.gibbs_step(key, chain), None

    keys = jax.random.split(key_run, _MEAN_SWEEPS)
    chain, _ = jax.lax.scan(sweep, target.init_chain(key_init, (_MEAN_CHAINS,)), keys)
    visible, hidden = target.visible_units, target.hidden_units
    field = target._coupled(target.input_to_visible(chain.hidden))
    del hidden
    features = visible.features(visible.sample(key_init, field))
    return visible.mean(field).mean(0), (features**2).mean(0)
