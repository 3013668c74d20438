"""Maximum likelihood, exact or with chains burnt in anew at each update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution, Kernel
from numpyro_ebm.losses.chains import advance, negative_energy
from numpyro_ebm.losses.loss import EnergyLoss
from numpyro_ebm.normalizer import NormalizerError


class MaximumLikelihood(EnergyLoss):
    r"""Negative log-likelihood; its gradient is exact where the states can be summed.

    .. math:: \nabla \log p(x) = -\nabla E(x) - \nabla \log Z, \qquad
        \nabla \log Z = -\mathrm{E}_{\tilde x \sim p}[\nabla E(\tilde x)]

    By default log Z is summed exactly (``exact_log_z``), once per update: the gradient is exact,
    and the loss is the negative log-likelihood in nats, so that with priors and a guide it is the
    negative ELBO.

    With ``num_chains`` the expectation is a mean over chains that start anew at random states at
    each update and take ``num_steps`` steps, without gradients through them: naive Markov chain
    Monte Carlo. That gradient is unbiased only as far as the chains are burnt in, and costs
    ``num_steps`` steps per update; :class:`PersistentContrastiveDivergence` continues its chains
    instead. The value of the loss is then :math:`E(x) - \frac{1}{C} \sum_c E(\tilde x_c)` in nats,
    no likelihood.

    Args:
        num_chains: C, chains of the negative phase; ``None`` for the exact sum.
        num_steps: Steps of the chains at each update.
        kernel: A kernel (``init`` and ``step``) for the chains; by default the model's own Gibbs
            step.
        num_particles: Draws from the guide for one estimate.
        vectorize_particles: Whether to ``vmap`` over them.

    Raises:
        ValueError: ``num_chains`` or ``num_steps`` is not a positive integer, or ``kernel`` comes
            without ``num_chains``.
        NormalizerError: In training, without ``num_chains``: the states of the model cannot be
            summed.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(data):
        ...     bias = numpyro.param("bias", jnp.zeros(2))
        ...     machine = ebm.BoltzmannMachine(jnp.zeros((2, 2)), bias)
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("x", machine, obs=data)
        >>> data = jnp.array([[1, 0], [1, 0], [1, 1], [0, 1]])
        >>> svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.1), ebm.MaximumLikelihood())
        >>> result = svi.run(jax.random.key(0), 200, data, progress_bar=False)
        >>> jax.nn.sigmoid(result.params["bias"]).round(2)  # the means
        Array([0.75, 0.5 ], dtype=float32)

    References:
        Goodfellow, Bengio & Courville (2016), *Deep Learning*, section 18.1 and algorithm 18.1.
    """

    def __init__(
        self,
        *,
        num_chains: int | None = None,
        num_steps: int = 100,
        kernel: Kernel | None = None,
        num_particles: int = 1,
        vectorize_particles: Any = True,
    ) -> None:
        for label, count in (("num_chains", num_chains), ("num_steps", num_steps)):
            optional = label == "num_chains" and count is None
            if not optional and (not isinstance(count, int) or count < 1):
                raise ValueError(
                    f"{type(self).__name__}: expected `{label}` to be a positive integer; got "
                    f"{count!r}."
                )
        if num_chains is None and kernel is not None:
            raise ValueError(
                f"{type(self).__name__}: expected `num_chains` beside `kernel`; without it log Z "
                "is summed exactly, and there are no chains to move."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.num_chains, self.num_steps, self.kernel = num_chains, num_steps, kernel
        self.by_frames = num_chains is not None

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Each observation against log Z, or against the chains in its place."""
        if self.num_chains is None:
            log_z = self._log_z(name, distribution)
            return lambda value: -distribution.energy(value) - log_z
        key_start, key_run = jax.random.split(rng_key)
        start = jax.lax.stop_gradient(distribution).init_chain(key_start, (self.num_chains,))
        chain = advance(key_run, start, distribution, self.num_steps, self.kernel)
        negative = negative_energy(distribution, chain, self.kernel).mean(0)
        return lambda value: negative - distribution.energy(value)

    def _log_z(self, name: str, distribution: EnergyDistribution) -> Float[Array, "*batch"]:
        try:
            return distribution.exact_log_z()
        except NormalizerError as error:
            raise NormalizerError(
                f"{type(self).__name__}: expected a model at site '{name}' whose log Z can be "
                f"summed exactly. {error} To train it: ebm.MaximumLikelihood(num_chains=100), "
                "which burns chains in at each update, ebm.PersistentContrastiveDivergence(), "
                "which continues them, or a loss without log Z such as ebm.PseudoLikelihood() for "
                "discrete units."
            ) from error
