"""The base-rate path of an RBM, for annealed importance sampling and tempering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from numpyro_ebm.base import Chain, EnergyDistribution
from numpyro_ebm.units import Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.rbm import RBM

_MEAN_CHAINS = 64
_MEAN_SWEEPS = 50


class BaseRatePath:
    r"""Models with weights :math:`\beta W` between independent units and a full RBM.

    At inverse temperature :math:`\beta` the weights are :math:`\beta W`. The visible units
    interpolate in natural parameters between a base-rate unit and the model's own, the hidden
    units between units without bias and the model's own: were large hidden biases there from the
    start, the hidden units could not follow the growing weights. At :math:`\beta = 0` the units
    are independent, so that log Z and exact draws are closed forms.

    References:
        Salakhutdinov & Murray (2008), "On the Quantitative Analysis of Deep Belief Networks",
        section 4.1.
    """

    def __init__(self, target: RBM, base: Unit) -> None:
        self.target = target
        self.base = base

    @classmethod
    def of(cls, target: RBM, rng_key: Key[Array, ""], base: Any = None) -> BaseRatePath:
        """Choose the base: a visible unit, data, or (``None``) the model's own mean."""
        chosen = visible_base(target, target.visible_units, base)
        return cls(target, own_base(target, rng_key) if chosen is None else chosen)

    @property
    def log_z0(self) -> Float[Array, ""]:
        """Log Z of the independent units at beta = 0, in nats."""
        visible, hidden = self._units(0.0)
        dtype = self.target.weights.dtype
        visible_term = visible.log_partition(jnp.zeros(visible.num_features, dtype))
        return visible_term + hidden.log_partition(jnp.zeros(hidden.num_features, dtype))

    def _units(self, beta: Float[ArrayLike, ""]) -> tuple[Unit, Unit]:
        """Visible and hidden units at inverse temperature ``beta``."""
        hidden = self.target.hidden_units
        return (
            self.target.visible_units.interpolate(self.base, beta),
            hidden.interpolate(_unbiased(hidden), beta),
        )

    def at(self, beta: Float[ArrayLike, ""]) -> RBM:
        """Return the RBM at inverse temperature ``beta``."""
        visible, hidden = self._units(beta)
        rbm = self.target.with_visible(visible, self.target._coupled(jnp.asarray(beta)))
        rbm.hidden_units = hidden
        return rbm

    def retarget(self, target: RBM) -> BaseRatePath:
        """Return the path from the same base to another RBM."""
        return BaseRatePath(target, self.base)

    def sample(self, rng_key: Key[Array, ""], num_samples: int) -> Chain:
        """Draw chains of independent units, with their input to the hidden units cached."""
        return self.target.refresh(self.at(0.0).init_chain(rng_key, (num_samples,)))

    def log_weight_increment(
        self, chain: Chain, beta: Float[ArrayLike, ""], beta_next: Float[ArrayLike, ""]
    ) -> Float[Array, "*batch"]:
        """E_beta(v) - E_beta_next(v) in nats; hidden units are differenced before summing."""
        visible, hidden = self._units(beta)
        visible_next, hidden_next = self._units(beta_next)
        field = self.target._coupled(chain.field)
        gain = hidden_next.unit_log_partition(jnp.asarray(beta_next) * field)
        loss = hidden.unit_log_partition(jnp.asarray(beta) * field)
        return (gain - loss).sum(-1) + visible.energy_difference(visible_next, chain.visible)


jax.tree_util.register_pytree_node(
    BaseRatePath,
    lambda path: ((path.target, path.base), None),
    lambda _, children: BaseRatePath(*children),
)


def visible_base(owner: EnergyDistribution, visible: Unit, base: Any) -> Unit | None:
    """Independent visible units from what is given: a unit, or data; ``None`` stays ``None``.

    Raises:
        TypeError: ``base`` is neither.
        ValueError: It does not fit the visible units.
    """
    name = type(owner).__name__
    if base is None:
        return None
    if isinstance(base, Unit):
        _check_unit(name, base, visible)
        return base
    try:
        base = jnp.asarray(base)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected `base` to be data of shape (n, num_visible), a visible unit, or "
            f"None; got {type(base).__name__}."
        ) from error
    if base.ndim != 2 or base.shape[0] == 0:
        raise ValueError(
            f"{name}: expected `base` data of shape (n, {visible.shape[0]}) with n >= 1; got "
            f"{base.shape}."
        )
    owner.check_value(base, "base", as_rows=True)
    return _data_base(visible, base)


def _check_unit(name: str, base: Unit, visible: Unit) -> None:
    """Raise unless ``base`` is of the same kind and size as the visible units."""
    pairs = zip(jax.tree.leaves(base), jax.tree.leaves(visible), strict=False)
    fits = jax.tree.structure(base) == jax.tree.structure(visible) and all(
        jnp.shape(mine) == jnp.shape(theirs)[-jnp.ndim(mine) :] for mine, theirs in pairs
    )
    if not fits:
        raise ValueError(
            f"{name}: expected `base` of the visible units' kind and size, {visible!r} with "
            f"features {visible.feature_shape}; got {base!r} with features {base.feature_shape}."
        )


def _unbiased(unit: Unit) -> Unit:
    """The unit with every natural parameter but the precision set to zero."""

    def neutral(path: tuple[Any, ...], leaf: Array) -> Array:
        return leaf if path[-1].name == "scale" else jnp.zeros_like(leaf)

    return jax.tree_util.tree_map_with_path(neutral, unit)


@jax.jit
def _data_base(visible: Unit, data: Array) -> Unit:
    """The visible unit with the moments of data."""
    features = visible.features(data)
    return visible.base_rate(_smoothed(features, visible), (features**2).mean(0))


@jax.jit
def own_base(target: RBM, rng_key: Key[Array, ""]) -> Unit:
    """The visible unit with the moments that the model has in short Gibbs chains."""
    key_init, key_run, key_last = jax.random.split(rng_key, 3)

    def sweep(chain, key):
        return target.gibbs_step(key, chain), None

    keys = jax.random.split(key_run, _MEAN_SWEEPS)
    chain, _ = jax.lax.scan(sweep, target.init_chain(key_init, (_MEAN_CHAINS,)), keys)
    visible = target.visible_units
    field = target._coupled(target.input_to_visible(chain.hidden))
    features = visible.features(visible.sample(key_last, field))
    return visible.base_rate(_smoothed(visible.mean(field), visible), (features**2).mean(0))


def _smoothed(features: Float[Array, "n features"], visible: Unit) -> Float[Array, " features"]:
    """Mean of features, with one more row that has the mean of the unit by itself."""
    prior = visible.mean(jnp.zeros(visible.num_features, features.dtype))
    return (features.sum(0) + prior) / (features.shape[0] + 1)
