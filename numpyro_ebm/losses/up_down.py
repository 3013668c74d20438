"""Up-down: contrastive wake-sleep for deep belief networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.losses.chains import advance, advance_persistent
from numpyro_ebm.losses.loss import EnergyLoss


class UpDown(EnergyLoss):
    r"""The up-down algorithm: all layers of a deep belief network are tuned together.

    With recognition weights of their own, :math:`q_\phi(h_k \mid h_{k-1})`, and :math:`h_0 = x`,

    .. math:: \text{up: } h \sim q_\phi(\cdot \mid x), \qquad
        \nabla_\theta = \sum_{k=1}^{L-1} \nabla \log p_\theta(h_{k-1} \mid h_k)

    .. math:: \text{top: } -\nabla E_{top}(h_{L-1}) + \nabla E_{top}(\tilde h_{L-1}), \qquad
        \text{down: } \nabla_\phi = \sum_{k=1}^{L-1} \nabla \log q_\phi(\tilde h_k \mid
        \tilde h_{k-1})

    where :math:`\tilde h_{L-1}` has taken ``num_steps`` Gibbs steps of the top machine and the
    layers below it are drawn downwards. No gradient passes through a draw.

    The gradient in the weights of the directed layers is an unbiased estimate of that of the
    variational lower bound. That of the top machine is biased as in contrastive divergence, for the
    chain starts at :math:`h_{L-1}`; with :func:`persistent_chains` it goes on from the last update,
    and the bias vanishes as the learning rate falls. The recognition weights follow
    :math:`KL(p(h \mid \tilde x) \| q)` on draws of the network, not the bound, so that all together
    follow **no single objective**.

    The value of the loss is :math:`E(x, h) - E_{top}(\tilde h_{L-1})` in nats, summed over
    observations, with E the energy of all layers but the topmost; to follow the bound, estimate it
    with :func:`evidence.variational_bound <numpyro_ebm.evidence.variational_bound>`.

    Args:
        num_steps: Gibbs steps of the top machine at each update.

    Raises:
        TypeError: In training, where the observed model is no DBN.
        ValueError: ``num_steps`` is not a positive integer; in training, where the recognition
            weights are tied, or chains are kept with a kernel.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, optax, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> layers = [ebm.RBM(0.1 * jnp.ones((4, 3)), jnp.zeros(4), jnp.zeros(3)),
        ...           ebm.RBM(0.1 * jnp.ones((3, 4)), jnp.zeros(3), jnp.zeros(4))]
        >>> start = ebm.DBN(layers, recognition=layers[:1])
        >>> def model(data):
        ...     dbn = numpyro.param("dbn", lambda rng_key: start)  # all of its arrays
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("x", dbn, obs=data)
        >>> data = jnp.array([[1, 1, 0, 0], [1, 1, 0, 1]] * 20)
        >>> svi = SVI(model, lambda data: None, optax.sgd(1e-3), ebm.UpDown())
        >>> dbn = svi.run(jax.random.key(0), 100, data, progress_bar=False).params["dbn"]
        >>> bool(dbn.exact_log_z() - dbn.energy(data).mean() > start.exact_log_z() - 4.0)
        True

    References:
        Hinton, Osindero & Teh (2006), "A Fast Learning Algorithm for Deep Belief Nets", Neural
        Computation 18, section 5 and appendix B.
    """

    def __init__(self, num_steps: int = 1) -> None:
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(
                f"UpDown: expected `num_steps` to be a positive integer; got {num_steps!r}."
            )
        super().__init__()
        self.num_steps = num_steps

    def surrogate(
        self,
        rng_key: Key[Array, ""],
        name: str,
        distribution: EnergyDistribution,
        mutable: dict[str, Any],
    ) -> Callable[[Num[Array, "*shape"]], Float[Array, "*batch"]]:
        """Each observation on its way up, and the dreams on their way down."""
        dbn: Any = _checked(name, distribution)
        key_up, key_chain = jax.random.split(rng_key)
        kept = mutable.get(distribution.attached.get("chains"))
        dreams = None
        if kept is not None:
            dreams = advance_persistent(key_chain, kept, dbn, self.num_steps)

        def log_prob(value: Num[Array, "*shape"]) -> Float[Array, "*batch"]:
            hidden = jax.lax.stop_gradient(dbn.sample_hidden(key_up, value))
            chain = dreams
            if chain is None:
                chain = advance(key_chain, dbn.chain_of(value, hidden), dbn, self.num_steps)
            dream, *above = dbn.layer_states(chain)
            asleep = dbn.log_recognition(dream, above)
            down = dbn.layers[-1].energy(above[-1]) + asleep - jax.lax.stop_gradient(asleep)
            return (down if kept is None else down.mean(0)) - dbn.joint_energy(value, hidden)

        return log_prob


def _checked(name: str, distribution: Any) -> Any:
    """The network of a site, which has recognition weights of its own.

    Raises:
        TypeError: It is no network.
        ValueError: Its recognition weights are tied; its chains have a kernel.
    """
    if not hasattr(distribution, "has_tied_recognition"):
        raise TypeError(
            f"UpDown: expected an ebm.DBN at site '{name}'; got {type(distribution).__name__}. "
            "Train an RBM with ebm.PersistentContrastiveDivergence."
        )
    if distribution.has_tied_recognition:
        raise ValueError(
            f"UpDown: expected a DBN with recognition weights of their own at site '{name}'; they "
            "are tied. Start from ebm.DBN(layers, recognition=layers[:-1]), with at least two "
            "layers."
        )
    if distribution.attached.get("chain_kernel") is not None:
        raise ValueError(
            f"UpDown: expected chains of site '{name}' without `kernel`; the top machine moves by "
            "its own Gibbs step."
        )
    return distribution
