"""An energy-based model that counts by its pseudolikelihood."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.distributions import Distribution, constraints

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.normalizer import in_host_log_likelihood, warn_unnormalized
from numpyro_ebm.random_key import require_key


class Pseudolikelihood(Distribution):
    """An energy-based model whose ``log_prob`` is the log pseudolikelihood, in nats.

    Draws are those of the model, exact where it has ``exact_sample``. ``ebm.pseudolikelihood``
    puts it at the sites of a NumPyro model.

    Args:
        model: A discrete energy-based model.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("model",)

    def __init__(self, model: EnergyDistribution) -> None:
        self.model = model
        super().__init__(model.batch_shape, model.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """Support of the model."""
        return self.model.support

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*shape"]:
        """Draw from the model."""
        draw = self.model.exact_sample if self.model.exact_sampler else self.model.sample
        return draw(require_key(key), sample_shape)

    def log_prob(
        self, value: Num[ArrayLike, "*shape"], intermediates: Any = None
    ) -> Float[Array, "*batch"]:
        """Log pseudolikelihood of each observation, minus infinity outside the support."""
        inside = self.model.check_value(value)
        log_prob = self.model.log_pseudolikelihood(value)
        if in_host_log_likelihood():
            warn_unnormalized(type(self.model).__name__)
            return jnp.full_like(log_prob, jnp.nan)
        return log_prob if inside is True else jnp.where(inside, log_prob, -jnp.inf)


def has_pseudolikelihood(site: dict[str, Any]) -> bool:
    """Whether a site of a trace counts by its pseudolikelihood."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Pseudolikelihood)
