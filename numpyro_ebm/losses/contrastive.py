"""Contrastive divergence, whose chains start at the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution, Kernel
from numpyro_ebm.losses.centering import check_gradient, with_gradient
from numpyro_ebm.losses.chains import advance, negative_energy
from numpyro_ebm.losses.loss import EnergyLoss
from numpyro_ebm.losses.positive import check_positive, clamped_chain, positive_energy
from numpyro_ebm.losses.rows import ObservedRows


class ContrastiveDivergence(EnergyLoss):
    r"""CD-k: the negative phase is k steps of a Markov chain away from the data.

    .. math:: \nabla \ell(x) = -\nabla E(x) + \nabla E(\tilde x), \qquad
        \tilde x \sim T^k(\cdot \mid x)

    with E the energy with hidden units summed out and no gradient through the chain. The gradient
    is biased; the bias vanishes as k grows. The value of the loss is
    :math:`E(x) - E(\tilde x)` in nats, summed over observations.

    For RBMs of Bernoulli, Spin or Categorical units the gradient can be centered: with the plain
    one :math:`(g_W, g_b, g_c)` and offsets :math:`\mu, \lambda`,

    .. math:: g'_W = g_W - \mu g_c^T - g_b \lambda^T, \qquad g'_b = g_b - g'_W \lambda, \qquad
        g'_c = g_c - g_W'^T \mu.

    It vanishes where the plain one does, and is less skewed by units that are mostly on. The
    offsets of ``"centered"`` are the means of the visible units and of their hidden units'
    expectations over the batch of data; those of ``"enhanced"`` lie halfway between data and
    negative samples. What is added to the likelihood would not be rescaled: latent sites
    (priors) and ``numpyro.factor`` raise; use :meth:`RBM.from_centered` with them. Penalties that
    the optimizer adds, and weights that are a function of fewer parameters, do move the optimum.

    E(x) is a sum over hidden states, which deep Boltzmann machines and Boltzmann machines with many
    coupled hidden units do not have. Their positive phase takes :math:`\nabla E(x, h)` instead, at
    hidden states of chains clamped at the data (``positive="clamped"``: biased by the start of
    these chains, ever less the more steps they take), or its mean over independent hidden units
    (``"mean_field"``: it raises a lower bound of the likelihood, biased however many iterations,
    and exact where the posterior of the hidden units factorizes). The negative phase is at the
    states of all units of the free chains.

    Args:
        num_steps: k, steps of the chain.
        kernel: A kernel (``init`` and ``step``); by default the model's own Gibbs step.
        gradient: ``"plain"``, ``"centered"`` or ``"enhanced"``.
        positive: ``"energy"``, ``"mean_field"`` or ``"clamped"``.
        num_positive_steps: Mean-field iterations at most, or sweeps of the clamped chains, which
            start anew at each update.
        num_particles: Draws from the guide for one estimate.
        vectorize_particles: Whether to ``vmap`` over them.

    Raises:
        ValueError: A number of steps is not a positive integer, or ``gradient`` or ``positive``
            none of these; in training with ``"mean_field"`` where the model has none, and with a
            centered gradient where the model is no such RBM, has batch dimensions, latent sites or
            factors, or parameters that are partly constant.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(data):
        ...     weights = numpyro.param("weights", 0.01 * jnp.ones((4, 2)))
        ...     bias = numpyro.param("bias", jnp.zeros(4))
        ...     with numpyro.plate("rows", data.shape[0]):
        ...         numpyro.sample("v", ebm.RBM(weights, bias, jnp.zeros(2)), obs=data)
        >>> data = jnp.array([[1, 1, 0, 0], [1, 1, 0, 1]])
        >>> svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.1),
        ...           ebm.ContrastiveDivergence(num_steps=1))
        >>> result = svi.run(jax.random.key(0), 100, data, progress_bar=False)
        >>> bool(result.params["bias"][0] > result.params["bias"][2])
        True

    References:
        Hinton (2002), "Training Products of Experts by Minimizing Contrastive Divergence", eq. 7;
        Goodfellow, Bengio & Courville (2016), *Deep Learning*, algorithm 18.2; Cho, Raiko & Ilin
        (2013), "Enhanced Gradient for Training Restricted Boltzmann Machines"; Melchior, Fischer &
        Wiskott (2016), "How to Center Deep Boltzmann Machines", JMLR 17(99).
    """

    def __init__(
        self,
        num_steps: int = 1,
        *,
        kernel: Kernel | None = None,
        gradient: str = "plain",
        positive: str = "energy",
        num_positive_steps: int = 10,
        num_particles: int = 1,
        vectorize_particles: Any = True,
    ) -> None:
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(
                f"{type(self).__name__}: expected `num_steps` to be a positive integer; got "
                f"{num_steps!r}."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.num_steps = num_steps
        self.kernel = kernel
        self.gradient = check_gradient(type(self).__name__, gradient)
        self.positive = check_positive(type(self).__name__, positive, num_positive_steps)
        self.num_positive_steps = num_positive_steps

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
            ValueError: As in every energy loss; latent sites or factors with a centered gradient.
        """
        alone = None
        if self.gradient != "plain":
            alone = f'{type(self).__name__}(gradient="{self.gradient}")'
        model = ObservedRows(model, alone)
        return super().loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Each observation against its own reconstruction."""

        def log_prob(value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
            if self.positive == "clamped":
                start = clamped_chain(rng_key, distribution, value, self.num_positive_steps)
            else:
                start = distribution.chain_at(value)
            chain = advance(rng_key, start, distribution, self.num_steps, self.kernel)
            negative = distribution.visible(chain)
            model = with_gradient(self.gradient, distribution, value, negative, paired=True)
            return negative_energy(model, chain, self.kernel) - self._positive(
                rng_key, model, value
            )

        return log_prob

    def _positive(
        self, rng_key: Key[Array, ""], model: EnergyDistribution, value: Num[Array, "*shape"]
    ) -> Float[Array, "*batch"]:
        steps = self.num_positive_steps
        return positive_energy(self.positive, rng_key, model, value, steps)
