"""Normalized densities near a posterior, fitted to draws from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float64, Key
from numpyro.distributions import Distribution

from numpyro_ebm.evidence.posterior import Posterior
from numpyro_ebm.protocols import UnitStates

PROPOSALS = ("normal", "student_t", "warp3")
_DEGREES = 5.0
_SMALLEST_RATE = 1e-3
Vectors = Float64[np.ndarray, "*batch n"]


class Proposal:
    r"""A proposal g and the posterior :math:`\tilde p` it is compared with.

    Args:
        posterior: Draws and density.
        distribution: g, over vectors.
        warp: Centre and scale of the warp, if the posterior is warped.
    """

    def __init__(
        self,
        posterior: Posterior,
        distribution: Distribution,
        warp: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.posterior, self.distribution, self.warp = posterior, distribution, warp

    def log_ratio(self, vectors: Vectors) -> Float64[np.ndarray, "*batch"]:
        r""":math:`\log \tilde p(u) - \log g(u)` at draws from the posterior."""
        if self.warp is None:
            return self.posterior.log_density(vectors) - self._log_prob(vectors)
        centre, scale = self.warp
        standardized = np.linalg.solve(scale, (vectors - centre)[..., None])[..., 0]
        return self._warped(vectors) - self._log_prob(standardized)

    def sample_log_ratio(self, rng_key: Key[Array, ""], num: int) -> Float64[np.ndarray, " num"]:
        """The same at fresh draws from the proposal."""
        drawn = self.draw(rng_key, num)
        if self.warp is None:
            return self.posterior.log_density(drawn) - self._log_prob(drawn)
        centre, scale = self.warp
        return self._warped(centre + drawn @ scale.T) - self._log_prob(drawn)

    def draw(self, rng_key: Key[Array, ""], num: int) -> Float64[np.ndarray, "num n"]:
        """Draw from g."""
        with jax.enable_x64(True):
            drawn = np.asarray(self.distribution.sample(rng_key, (num,)), np.float64)
        return drawn.reshape(num, -1)

    def _warped(self, vectors: Vectors) -> Float64[np.ndarray, "*batch"]:
        """Log density of the posterior averaged over its mirror image, times the scale."""
        centre, scale = cast(Any, self.warp)
        mirrored = 2 * centre - vectors
        both = [self.posterior.log_density(v) for v in (vectors, mirrored)]
        return np.logaddexp(*both) - np.log(2) + np.linalg.slogdet(scale)[1]

    def _log_prob(self, vectors: Vectors) -> Float64[np.ndarray, "*batch"]:
        with jax.enable_x64(True):
            kind = jnp.float64 if self.posterior.states is None else jnp.int32
            return np.asarray(self.distribution.log_prob(jnp.asarray(vectors, kind)), np.float64)


def fit_proposal(caller: str, proposal: Any, draws: Vectors, posterior: Posterior) -> Proposal:
    """Return the proposal asked for, fitted to draws that are not used again.

    Raises:
        TypeError: It is neither a name, nor a distribution, nor a function that fits one.
        ValueError: An unknown name, or the wrong dimension.
    """
    flat = draws.reshape(-1, draws.shape[-1])
    if isinstance(proposal, str):
        if proposal not in PROPOSALS:
            raise ValueError(
                f"{caller}: expected `proposal` to be one of {PROPOSALS}, a distribution over the "
                f"vector of all latent sites or a function that fits one; got {proposal!r}."
            )
        if posterior.states is not None:
            return _independent(caller, proposal, flat, posterior)
        return _elliptical(proposal, flat, posterior)
    if isinstance(proposal, Distribution):
        distribution = proposal
    elif isinstance(proposal, Callable):
        distribution = proposal(jnp.asarray(flat))
    else:
        distribution = None
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"{caller}: expected `proposal` to be one of {PROPOSALS}, a NumPyro distribution or a "
            f"function that maps draws (n, dim) to one; got {type(proposal).__name__}."
        )
    if distribution.event_shape != (flat.shape[1],) or distribution.batch_shape:
        raise ValueError(
            f"{caller}: expected a `proposal` with batch shape () and event shape "
            f"({flat.shape[1]},), the unconstrained latent values in one vector; got "
            f"{distribution.batch_shape} and {distribution.event_shape}."
        )
    return Proposal(posterior, distribution)


def _elliptical(name: str, flat: np.ndarray, posterior: Posterior) -> Proposal:
    """A normal or Student-t proposal with the moments of draws."""
    dim, centre = flat.shape[1], flat.mean(0)
    covariance = np.atleast_2d(np.cov(flat, rowvar=False))
    jitter = 1e-10 * max(np.trace(covariance) / dim, 1e-300)
    scale = np.linalg.cholesky(covariance + jitter * np.eye(dim))
    with jax.enable_x64(True):
        if name == "warp3":
            standard = dist.Normal(jnp.zeros(dim), 1.0).to_event(1)
            return Proposal(posterior, standard, (centre, scale))
        if name == "student_t":
            shrunk = scale * np.sqrt((_DEGREES - 2) / _DEGREES)
            heavy = dist.MultivariateStudentT(_DEGREES, jnp.asarray(centre), jnp.asarray(shrunk))
            return Proposal(posterior, heavy)
        normal = dist.MultivariateNormal(jnp.asarray(centre), scale_tril=jnp.asarray(scale))
        return Proposal(posterior, normal)


def _independent(caller: str, name: str, flat: np.ndarray, posterior: Posterior) -> Proposal:
    """Independent discrete units at their base rates."""
    if name != "normal":
        raise ValueError(
            f"{caller}: expected `proposal` to be a distribution or the default for discrete units "
            f"(independent units at their base rates); got {name!r}."
        )
    values, allowed = cast(UnitStates, posterior.states)
    counts = np.stack([(flat == values[:, c]) & allowed[:, c] for c in range(values.shape[1])], -1)
    share = allowed / allowed.sum(-1, keepdims=True)
    rates = (1 - _SMALLEST_RATE) * counts.mean(0) + _SMALLEST_RATE * share
    with jax.enable_x64(True):
        return Proposal(posterior, _IndependentUnits(jnp.asarray(rates), jnp.asarray(values)))


class _IndependentUnits(Distribution):
    """Independent units, each with its own states and rates."""

    support = (
        dist.constraints.integer_vector if hasattr(dist.constraints, "integer_vector") else None
    )

    def __init__(self, rates: Array, values: Array) -> None:
        self.rates, self.values = rates, values
        super().__init__((), (rates.shape[0],), validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        labels = dist.Categorical(self.rates).sample(key, sample_shape)
        return jnp.take_along_axis(
            jnp.broadcast_to(self.values, labels.shape + self.values.shape[1:]),
            labels[..., None],
            axis=-1,
        )[..., 0]

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        matches = value[..., None] == self.values
        first = jnp.cumsum(matches, -1) == 1
        rate = jnp.sum(jnp.where(matches & first, self.rates, 0.0), -1)
        return jnp.log(rate).sum(-1)
