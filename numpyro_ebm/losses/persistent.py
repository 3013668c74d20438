"""Contrastive divergence whose chains persist from one update to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution, Kernel
from numpyro_ebm.losses.centering import with_gradient
from numpyro_ebm.losses.chains import advance_persistent, negative_energy
from numpyro_ebm.losses.contrastive import ContrastiveDivergence


class PersistentContrastiveDivergence(ContrastiveDivergence):
    r"""PCD: the negative phase continues Markov chains from one update to the next.

    .. math:: \nabla \ell(x) = -\nabla E(x) + \frac{1}{C} \sum_c \nabla E(\tilde x_c)

    with C chains that take ``num_steps`` steps on the current model at each update. The bias
    vanishes as the learning rate falls, since the chains then track the model. The model declares
    where they are kept with :func:`persistent_chains`, which may also give the kernel that moves
    them and keep its state, such as the replicas of parallel tempering. The value of the loss is
    :math:`E(x) - \frac{1}{C} \sum_c E(\tilde x_c)` in nats, summed over observations. Whether the
    chains keep up is for :func:`chain_health` to say.

    ``svi.evaluate`` passes no mutable state, hence no chains, and raises.

    Args:
        num_steps: Steps of the chains at each update.
        kernel: A kernel (``init`` and ``step``) that starts anew at the chains in each update; by
            default that of :func:`persistent_chains`, or the model's own Gibbs step.
        gradient: ``"plain"``, ``"centered"`` or ``"enhanced"``, see
            :class:`ContrastiveDivergence`.
        positive: ``"energy"``, ``"mean_field"`` or ``"clamped"``, see there.
        num_positive_steps: Mean-field iterations at most, or sweeps of the clamped chains.
        num_particles: Must be 1: one set of chains follows one set of parameters.

    Raises:
        ValueError: A number of steps is not a positive integer, ``num_particles`` is not 1, no
            chains reach the loss, or ``kernel`` is another than that of the chains; see
            :class:`ContrastiveDivergence` for ``gradient`` and ``positive``.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(data):
        ...     weights = numpyro.param("weights", 0.01 * jnp.ones((4, 2)))
        ...     rbm = ebm.RBM(weights, numpyro.param("bias", jnp.zeros(4)), jnp.zeros(2))
        ...     ebm.persistent_chains("chains", 20, rbm)
        ...     with numpyro.plate("rows", data.shape[0]):
        ...         numpyro.sample("v", rbm, obs=data)
        >>> data = jnp.array([[1, 1, 0, 0], [1, 1, 0, 1]])
        >>> svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.1),
        ...           ebm.PersistentContrastiveDivergence())
        >>> result = svi.run(jax.random.key(0), 100, data, progress_bar=False)
        >>> result.state.mutable_state["chains"]["chain"].visible.shape
        (20, 4)

        A deep Boltzmann machine of any size:

        >>> def deep(data):
        ...     weights = [numpyro.param("w1", 0.01 * jnp.ones((4, 30))),
        ...                numpyro.param("w2", 0.01 * jnp.ones((30, 30)))]
        ...     dbm = ebm.DBM(weights, [jnp.zeros(4), jnp.zeros(30), jnp.zeros(30)])
        ...     ebm.persistent_chains("chains", 20, dbm)
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("v", dbm, obs=data)
        >>> loss = ebm.PersistentContrastiveDivergence(positive="mean_field")
        >>> svi = SVI(deep, lambda data: None, numpyro.optim.Adam(0.1), loss)
        >>> sorted(svi.run(jax.random.key(0), 2, data, progress_bar=False).params)
        ['w1', 'w2']

    References:
        Tieleman (2008), "Training Restricted Boltzmann Machines using Approximations to the
        Likelihood Gradient", section 4; Younes (1999), "On the Convergence of Markovian
        Stochastic Algorithms with Rapidly Decreasing Ergodicity Rates"; Goodfellow, Bengio &
        Courville (2016), *Deep Learning*, algorithms 18.3 and 20.1; Ackley, Hinton & Sejnowski
        (1985), "A Learning Algorithm for Boltzmann Machines" (clamped and free phases);
        Salakhutdinov & Hinton (2009), "Deep Boltzmann Machines", section 2 (mean field).
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
    ) -> None:
        if num_particles != 1:
            raise ValueError(
                f"{type(self).__name__}: expected `num_particles=1`, because one set of "
                f"chains follows one set of parameters; got {num_particles!r}. Use "
                "ContrastiveDivergence, which starts at the data, for several particles."
            )
        super().__init__(
            num_steps,
            kernel=kernel,
            gradient=gradient,
            positive=positive,
            num_positive_steps=num_positive_steps,
        )

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: without mutable state there are no persistent chains.

        Raises:
            ValueError: Always; ``loss_with_mutable_state`` is what trains.
        """
        raise ValueError(
            f"{type(self).__name__}: no persistent chains reached the loss. In training: "
            'call ebm.persistent_chains("chains", num_chains, rbm) in the model before the '
            "observed site. In svi.evaluate, which passes no mutable state: call "
            "svi.loss.loss_with_mutable_state(rng_key, {**svi.get_params(state), "
            "**state.mutable_state}, model, guide, data), or follow the likelihood with "
            "ebm.evidence, which says more than this loss."
        )

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Each observation against the persistent chains."""
        state, kernel = self._chains(name, distribution, mutable)
        chain = advance_persistent(rng_key, state, distribution, self.num_steps, kernel)

        def log_prob(value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
            negative = distribution.visible(chain)
            model = with_gradient(self.gradient, distribution, value, negative, paired=False)
            negative_mean = negative_energy(model, chain, kernel).mean(0)
            return negative_mean - self._positive(rng_key, model, value)

        return log_prob

    def _chains(
        self, name: str, distribution: EnergyDistribution, mutable: dict[str, Any]
    ) -> tuple[dict[str, Any], Kernel | None]:
        """What is kept of the chains of a site, and the kernel that moves them."""
        owner = type(self).__name__
        state = mutable.get(distribution.attached.get("chains"))
        if state is None:
            raise ValueError(
                f"{owner}: expected chains for site '{name}', declared "
                'before it in the model by ebm.persistent_chains("chains", num_chains, rbm) with '
                f"the same distribution object that is observed; got none for it among the mutable "
                f"sites {sorted(mutable)}."
            )
        kept = distribution.attached.get("chain_kernel")
        if kept is not None and self.kernel is not None and kept != self.kernel:
            raise ValueError(
                f"{owner}: expected one kernel for the chains of site '{name}'; got "
                f"{self.kernel!r} in the loss and {kept!r} in persistent_chains. Leave `kernel` "
                "out of the loss."
            )
        return state, self.kernel if kept is None else kept
