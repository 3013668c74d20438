"""The one adapter between losses for unnormalized models and NumPyro's SVI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.distributions import Distribution
from numpyro.infer import Trace_ELBO
from numpyro.primitives import Messenger
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import EnergyDistribution, rewrap
from numpyro_ebm.random_key import require_key


class Surrogate(Distribution):
    """Stands in for an observed energy-based model: its ``log_prob`` has the loss's gradient."""

    def __init__(
        self,
        distribution: EnergyDistribution,
        log_prob_fn: Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]],
    ) -> None:
        self._distribution, self._log_prob_fn = distribution, log_prob_fn
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the model."""
        return self._distribution.support

    def sample(self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw from the model."""
        return self._distribution.sample(key, sample_shape)

    def log_prob(
        self, value: Num[ArrayLike, "*shape"], intermediates: Any = None
    ) -> Float[Array, "*batch"]:
        """Minus the loss of each observation."""
        return self._log_prob_fn(jnp.asarray(value))


class _Substitution(Messenger):
    """Gives every observed energy-based site its surrogate."""

    def __init__(self, model: Callable[..., Any], loss: EnergyLoss) -> None:
        super().__init__(model)
        self.loss = loss
        self.mutable: dict[str, Any] = {}
        self.sites: list[str] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or not msg["is_observed"]:
            return

        def make(distribution: EnergyDistribution, masked: bool) -> Surrogate:
            self.sites.append(msg["name"])
            self._check_size(msg["name"], msg["value"])
            if not masked:  # masked rows may hold anything; the energy checks the others
                self._check_value(msg["name"], distribution, msg["value"])
            key = require_key(numpyro.prng_key())
            return Surrogate(distribution, self._log_prob_fn(key, msg, distribution))

        msg["fn"] = rewrap(msg["fn"], make) or msg["fn"]

    def _log_prob_fn(
        self, rng_key: Key[Array, ""], msg: dict[str, Any], distribution: EnergyDistribution
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Minus the loss of each observation; of a sequence, summed over its frames."""
        if not (distribution.by_frames and self.loss.by_frames):
            return self.loss.surrogate(rng_key, msg["name"], distribution, self.mutable)
        frames = distribution.conditionals(msg["value"])
        each = self.loss.surrogate(rng_key, msg["name"], frames, self.mutable)
        return lambda value: each(value).sum(-1)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "mutable":
            return
        if self.loss.num_particles > 1:
            raise ValueError(
                f"{type(self.loss).__name__}: expected `num_particles=1` for a model with mutable "
                f"sites such as '{msg['name']}', whose state cannot follow "
                f"{self.loss.num_particles} particles."
            )
        self.mutable[msg["name"]] = msg["value"]

    def _check_value(self, name: str, distribution: EnergyDistribution, value: Any) -> None:
        if not_jax_tracer(value):
            value = np.asarray(value)  # under jit, JAX would trace what it makes of known data
        distribution.check_value(value, f"obs of site '{name}'")

    def _check_size(self, name: str, value: Any) -> None:
        if jnp.size(value) == 0:
            raise ValueError(
                f"{type(self.loss).__name__}: expected at least one observation at site "
                f"'{name}'; got an array of shape {jnp.shape(value)}."
            )


class EnergyLoss(Trace_ELBO):
    r"""Base of the losses that train unnormalized models through ``numpyro.infer.SVI``.

    Each observed energy-based site is given a surrogate whose ``log_prob`` has the gradient of the
    loss; every other site (priors, latents, normalized likelihoods) contributes to the ELBO as
    usual. So plates, subsampling, ``scale``, masks, MAP by ``AutoDelta`` and variational
    posteriors by ``AutoNormal`` work unchanged. The value of the loss is a difference of energies,
    not a likelihood; to follow the likelihood, estimate log Z with ``ebm.evidence``.

    Args:
        num_particles: Draws from the guide for one estimate.
        vectorize_particles: Whether to ``vmap`` over them.
    """

    by_frames: bool = True
    """Whether a sequence is trained as its frames, each given those before it."""

    def __init__(self, num_particles: int = 1, vectorize_particles: Any = True) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(
                f"{type(self).__name__}: expected `num_particles` to be a positive integer; got "
                f"{num_particles!r}."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Return minus the loss of each observation as a function of the observations.

        Args:
            rng_key: Random key.
            name: Name of the observed site.
            distribution: Its model.
            mutable: State at the model's mutable sites so far; update it in place.
        """
        raise TypeError(f"{type(self).__name__} does not define `surrogate`.")

    def loss_with_mutable_state(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Evaluate the loss; see ``numpyro.infer.elbo.ELBO``.

        Raises:
            ValueError: The model has no observed energy-based site; the data are empty or outside
                the support; mutable state would be lost over several particles.
        """
        substitution = _Substitution(model, self)
        result = super().loss_with_mutable_state(
            rng_key, param_map, substitution, guide, *args, **kwargs
        )
        if not substitution.sites:
            raise ValueError(
                f"{type(self).__name__}: expected a model with an observed energy-based site, "
                'numpyro.sample("v", ebm.RBM(...), obs=data); this model has none.'
            )
        return result
