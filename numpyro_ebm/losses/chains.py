"""Markov chains of the contrastive losses, and where they persist between updates."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float, Key, Num
from numpyro.primitives import mutable as mutable_site

from numpyro_ebm.base import Chain, EnergyDistribution, Kernel, unwrap

_METHODS = ("init", "step", "value", "refresh")


def advance(
    rng_key: Key[Array, ""],
    chain: Chain,
    distribution: EnergyDistribution,
    num_steps: int,
    kernel: Kernel | None = None,
) -> Chain:
    """Run chains on a model, without gradients.

    Args:
        rng_key: Random key.
        chain: Chains as the model defines them.
        distribution: The model, at its present parameters.
        num_steps: Steps of the kernel.
        kernel: A kernel, started at the visible units of the chains; by default the model's own
            Gibbs step.
    """
    frozen = jax.lax.stop_gradient(distribution)
    if kernel is None:

        def sweep(i, chain):
            return frozen.gibbs_step(jax.random.fold_in(rng_key, i), chain)

        return jax.lax.stop_gradient(jax.lax.fori_loop(0, num_steps, sweep, chain))
    state = kernel.init(frozen.visible(chain), frozen)
    state = advance_state(rng_key, state, frozen, num_steps, kernel)
    return jax.lax.stop_gradient(frozen.chain_at(kernel.value(state, frozen)))


def advance_state(
    rng_key: Key[Array, ""],
    state: Any,
    distribution: EnergyDistribution,
    num_steps: int,
    kernel: Kernel,
) -> Any:
    """Run chains on from a kernel's state that belongs to the present parameters."""
    frozen = jax.lax.stop_gradient(distribution)

    def step(i, state):
        return kernel.step(jax.random.fold_in(rng_key, i), state, frozen)[0]

    return jax.lax.stop_gradient(jax.lax.fori_loop(0, num_steps, step, state))


def advance_persistent(
    rng_key: Key[Array, ""],
    persistent: dict[str, Any],
    distribution: EnergyDistribution,
    num_steps: int,
    kernel: Kernel | None = None,
) -> Chain:
    """Run persistent chains on, store them in place, and return them.

    Args:
        rng_key: Random key.
        persistent: What is kept at the mutable site, see :func:`persistent_chains`.
        distribution: The model, at its present parameters.
        num_steps: Steps of the kernel.
        kernel: The kernel whose state is kept there; where there is none, one that starts anew at
            the visible units, or the model's own Gibbs step.
    """
    frozen = jax.lax.stop_gradient(distribution)
    if "state" not in persistent:
        chain = advance(rng_key, persistent["chain"], frozen, num_steps, kernel)
        chain = chain if kernel is None else frozen.refresh(chain)
    else:
        stateful = cast(Kernel, kernel)
        state = stateful.refresh(persistent["state"], frozen)
        state = advance_state(rng_key, state, frozen, num_steps, stateful)
        persistent["state"] = state
        chain = jax.lax.stop_gradient(frozen.chain_at(stateful.value(state, frozen)))
    persistent["chain"] = chain
    return chain


def negative_energy(
    distribution: EnergyDistribution, chain: Chain, kernel: Kernel | None
) -> Float[Array, "*batch"]:
    """Energy of negative samples in nats, with gradients in the parameters.

    What the chains have cached must be of these parameters, and its derivatives are counted. A
    kernel moves visible units only, so that the hidden units of its chains mean nothing.
    """
    if kernel is None:
        return distribution.chain_energy(chain)
    return distribution.energy(distribution.visible(chain))


def persistent_chains(
    name: str,
    num_chains: int,
    distribution: EnergyDistribution,
    *,
    kernel: Kernel | None = None,
    fast_weights: bool = False,
) -> Num[Array, "*shape"]:
    """Declare, in a model, the chains that :class:`PersistentContrastiveDivergence` continues.

    They are kept at a ``numpyro.primitives.mutable`` site, so ``SVIState.mutable_state`` holds
    them, and continuing ``svi.run(..., init_state=...)`` continues the chains. The site is a
    dictionary: ``"chain"`` holds the chains, ``"state"`` the whole state of ``kernel`` and
    ``"fast_weights"`` the fast weights, where there are such. Chains on an RBM keep the input to
    their hidden units that an update has computed; the next update draws the hidden units from
    it, which saves one product in six and, at fixed parameters, changes nothing.

    With ``kernel`` all of its state survives the updates: the replicas of parallel tempering, and
    the ladder and step sizes it has learnt. At each update the state is refreshed for the present
    parameters first, so that replicas move and swap by the present energies. Adaptation stops
    after the kernel's own ``num_warmup`` steps (0 by default: nothing adapts), counted from the
    start of the training. :class:`~numpyro_ebm.kernels.ParallelTemperingStep` along a recorded
    :class:`~numpyro_ebm.Trajectory` is parallel trajectory tempering; the trajectory is fixed
    while an update is compiled, so train in stages: record a first stage, continue on its
    trajectory, and pass a longer one to the model of the next stage, with new chains.

    Args:
        name: Name of the mutable site.
        num_chains: Number of chains.
        distribution: The distribution that is observed after this call.
        kernel: A pure kernel, such as ``ebm.kernels.ParallelTemperingStep(num_temperatures=10)``
            or ``ebm.kernels.MALAStep(0.01)``, whose state is kept; by default the chains move by
            the kernel of the loss.
        fast_weights: Whether to keep the fast weights of
            :class:`FastPersistentContrastiveDivergence`.

    Returns:
        The visible units of the chains before this update, ``(num_chains, ...)``.

    Raises:
        TypeError: ``distribution`` is not an energy-based model, or ``kernel`` is no kernel.
        ValueError: ``num_chains`` is not a positive integer, the stored chains are others, or
            rows of data have densities of their own, as in a conditional RBM.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> tempering = ebm.kernels.ParallelTemperingStep(num_temperatures=3)
        >>> def model(data):
        ...     weights = numpyro.param("weights", 0.01 * jnp.ones((4, 2)))
        ...     rbm = ebm.RBM(weights, jnp.zeros(4), jnp.zeros(2))
        ...     ebm.persistent_chains("chains", 20, rbm, kernel=tempering)
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("v", rbm, obs=data)
        >>> svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.1),
        ...           ebm.PersistentContrastiveDivergence())
        >>> result = svi.run(jax.random.key(0), 20, jnp.eye(4), progress_bar=False)
        >>> result.state.mutable_state["chains"]["state"].replicas.visible.shape
        (3, 20, 4)

    References:
        Tieleman (2008), "Training Restricted Boltzmann Machines using Approximations to the
        Likelihood Gradient"; Desjardins, Courville, Bengio, Vincent & Delalleau (2010),
        "Tempered Markov Chain Monte Carlo for Training of Restricted Boltzmann Machines";
        Cho, Raiko & Ilin (2010), "Parallel Tempering Is Efficient for Learning Restricted
        Boltzmann Machines"; Bereux, Decelle, Furtlehner, Rosset & Seoane (2024), "Fast training
        and sampling of Restricted Boltzmann Machines".
    """
    model = _checked(num_chains, distribution, kernel)
    rng_key = numpyro.prng_key()
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    frozen = jax.lax.stop_gradient(model)
    chain = frozen.init_chain(rng_key, (num_chains,))
    start: dict[str, Any] = {"chain": frozen.refresh(chain)}
    if kernel is not None:
        start["state"] = kernel.init(frozen.visible(chain), frozen)
        start["chain"] = frozen.chain_at(kernel.value(start["state"], frozen))
    if fast_weights:
        start["fast_weights"] = {
            leaf_name: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf))
            for leaf_name, leaf in free_leaves(frozen).items()
        }
    state: Any = mutable_site(name, cast(Any, start))
    if kernel is None and jax.tree.structure(state.get("chain")) == jax.tree.structure(chain):
        state["chain"] = frozen.refresh(state["chain"])  # chains that have cached nothing
    _check_stored(name, num_chains, start, state)
    model.attached["chains"] = name
    model.attached["chain_kernel"] = kernel
    return model.visible(state["chain"])


def _checked(num_chains: Any, distribution: Any, kernel: Any) -> EnergyDistribution:
    model = unwrap(distribution)
    if model is None:
        raise TypeError(
            "persistent_chains: expected `distribution` to be an energy-based model such as "
            f"ebm.RBM; got {type(distribution).__name__}."
        )
    if model.is_conditional:
        raise ValueError(
            "persistent_chains: expected one density for all rows of data; that of "
            f"{type(model).__name__} is another one for each condition, so that chains which go on "
            "under the conditions of another update sample none of them. Use "
            "ebm.ContrastiveDivergence, or ebm.MaximumLikelihood, exact or with `num_chains`."
        )
    if not isinstance(num_chains, int) or num_chains < 1:
        raise ValueError(
            f"persistent_chains: expected `num_chains` to be a positive integer; got "
            f"{num_chains!r}."
        )
    missing = [method for method in _METHODS if not callable(getattr(kernel, method, None))]
    if kernel is not None and (missing or isinstance(kernel, type)):
        raise TypeError(
            f"persistent_chains: expected `kernel` with the methods {', '.join(_METHODS)}, such "
            f"as ebm.kernels.ParallelTemperingStep(num_temperatures=10); got {kernel!r}."
        )
    return model


def _check_stored(name: str, num_chains: int, start: Any, state: Any) -> None:
    expected, got = (
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (start, state)
    )
    if expected != got:
        shown = [jax.tree.map(jnp.shape, tree.get("chain")) for tree in (start, state)]
        raise ValueError(
            f"persistent_chains: expected {num_chains} chains at '{name}' with shapes {shown[0]} "
            f"and the entries {sorted(start)}; the state holds {shown[1]} and {sorted(state)}, or "
            "the state of another kernel. Start a new state with svi.init after changing the model."
        )


def free_leaves(distribution: EnergyDistribution) -> dict[str, Array]:
    """Parameters that fast weights may be added to, by name.

    They are the floating arrays that can take any value; scales must stay positive.
    """
    return {
        name: leaf
        for name, leaf in _named_leaves(distribution)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and name.split(".")[-1] != "scale"
    }


def plus_free(distribution: EnergyDistribution, change: dict[str, Array]) -> EnergyDistribution:
    """Return the model with something added to its free leaves."""
    leaves = [
        leaf + change[name] if name in change else leaf
        for name, leaf in _named_leaves(distribution)
    ]
    return jax.tree.unflatten(jax.tree.structure(distribution), leaves)


def _named_leaves(distribution: EnergyDistribution) -> list[tuple[str, Array]]:
    """Names and leaves, in the order of the leaves, which differs from process to process."""
    fields = type(distribution).gather_pytree_data_fields()
    paths, _ = jax.tree.flatten_with_path(distribution)
    named = []
    for (field, *rest), leaf in paths:
        inner = jax.tree_util.keystr(tuple(rest), simple=True, separator=".")
        named.append((".".join(filter(None, (fields[field.key], inner))), leaf))
    return named
