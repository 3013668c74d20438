"""The deep belief network: a restricted Boltzmann machine above directed layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.distributions import constraints

from numpyro_ebm.base import widen
from numpyro_ebm.distributions.dbn_sum import log_prob_given, marginal_energy
from numpyro_ebm.distributions.dbn_sweeps import DBNSweeps
from numpyro_ebm.distributions.rbm import RBM
from numpyro_ebm.random_key import require_key


class DBN(DBNSweeps):
    r"""Deep belief network, a distribution over its visible units.

    The two top layers are a restricted Boltzmann machine; each layer below is drawn given the one
    above it:

    .. math:: p(x, h_1, \dots, h_L) = p(h_{L-1}, h_L) \prod_{k=1}^{L-2} p(h_k \mid h_{k+1})\;
        p(x \mid h_1), \qquad
        E(x) = -\log \sum_{h_1, \dots, h_{L-1}} e^{-E_{top}(h_{L-1})}
        p(h_{L-2} \mid h_{L-1}) \cdots p(x \mid h_1)

    with the conditionals of the given machines. What is missing of the log density is log Z of the
    top machine. ``energy`` and ``log_prob`` sum the states of :math:`h_1, \dots, h_{L-1}`, at most
    2^20 jointly; larger networks have the lower bound of
    :func:`evidence.variational_bound <numpyro_ebm.evidence.variational_bound>`. Draws are
    ancestral, from the top machine down.

    The recognition distribution :math:`q(h_k \mid h_{k-1})` that such bounds need is
    :math:`p(h_k \mid h_{k-1})` of the machines themselves (tied weights), or that of
    ``recognition``, for :class:`~numpyro_ebm.UpDown`.

    Args:
        layers: Machines from the visible units up. Each has the hidden units of the one below as
            its visible units: of the same kind and number, with biases of their own.
        recognition: Machines whose hidden units given the visible are the recognition
            distribution of the layers below the top one; nothing else of them is used.
        normalizer: What ``log_prob`` knows of log Z, see :class:`~numpyro_ebm.EnergyDistribution`.
        validate_args: Whether values are checked.

    Raises:
        TypeError: A layer is no RBM.
        ValueError: There is no layer, or layers do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> lower = ebm.RBM(jnp.ones((4, 3)), jnp.zeros(4), jnp.zeros(3))
        >>> top = ebm.RBM(jnp.ones((3, 2)), jnp.zeros(3), jnp.zeros(2))
        >>> dbn = ebm.DBN([lower, top], normalizer="exact")
        >>> dbn.log_prob(dbn.sample(jax.random.key(0), (5,))).shape
        (5,)

    References:
        Hinton, Osindero & Teh (2006), "A Fast Learning Algorithm for Deep Belief Nets", Neural
        Computation 18; Goodfellow, Bengio & Courville (2016), *Deep Learning*, section 20.3.
    """

    arg_constraints = {}
    pytree_data_fields = ("layers", "_recognition")

    def __init__(
        self,
        layers: Sequence[RBM],
        *,
        recognition: Sequence[RBM] | None = None,
        normalizer: str | ArrayLike = "guard",
        validate_args: bool | None = None,
    ) -> None:
        self.layers = _as_machines(layers, "layers")
        self._recognition = None
        if not self.layers:
            raise ValueError("DBN: expected at least one RBM in `layers`; got none.")
        self._check_layers()
        machines = self.layers
        if recognition is not None:
            self._recognition = _as_machines(recognition, "recognition")
            self._check_recognition(self._recognition)
            machines += self._recognition
        batches = [machine.batch_shape for machine in machines]
        try:
            batch_shape = jnp.broadcast_shapes(*batches)
        except ValueError as error:
            raise ValueError(
                f"DBN: expected layers with batch shapes that broadcast together; got {batches}."
            ) from error
        super().__init__(
            batch_shape,
            self.layers[0].event_shape,
            normalizer=normalizer,
            validate_args=validate_args,
        )

    def _check_layers(self) -> None:
        for number, (below, above) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            lower, upper = below.hidden_units, above.visible_units
            same_shape = lower.feature_shape == upper.feature_shape
            if not same_shape or lower.support != upper.support:
                raise ValueError(
                    f"DBN: expected the visible units of layer {number + 1} to be of the kind and "
                    f"number of the hidden units of layer {number}; got {upper!r} and {lower!r}."
                )

    def _check_recognition(self, machines: tuple[RBM, ...]) -> None:
        shapes, expected = (
            [rbm.visible_units.feature_shape + rbm.hidden_units.feature_shape for rbm in group]
            for group in (machines, self.layers[:-1])
        )
        if shapes != expected:
            raise ValueError(
                f"DBN: expected `recognition` machines with weights {expected}, those of the "
                f"layers below the top one; got {shapes}."
            )

    # ----- pieces --------------------------------------------------------------------------

    @property
    def support(self) -> constraints.Constraint:
        """Support of the visible units."""
        return self.layers[0].support

    # ----- densities -----------------------------------------------------------------------

    def energy(self, value: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch"]:
        """Energy of visible values in nats: every hidden layer summed out.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.

        Raises:
            NormalizerError: The hidden layers below the top one have more than 2^20 joint states.
            ValueError: Wrong shape, or values outside the support.
        """
        inside = self.check_value(value)
        energy = marginal_energy(self, jnp.asarray(value))
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def exact_log_z(self) -> Float[Array, "*batch"]:
        """Log Z of the top machine in nats, its smaller layer summed."""
        return self.top.exact_log_z()

    def joint_energy(
        self, value: Num[ArrayLike, "*batch n"], hidden: Sequence[Num[ArrayLike, "*batch m"]]
    ) -> Float[Array, "*batch"]:
        r"""Energy of all layers but the topmost, which is summed out, in nats.

        .. math:: E(x, h_1, \dots, h_{L-1}) = E_{top}(h_{L-1}) - \sum_{k=2}^{L-1}
            \log p(h_{k-1} \mid h_k) - \log p(x \mid h_1)

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            hidden: Values of the hidden layers below the top one, from the bottom up.

        Raises:
            ValueError: A value has the wrong shape, or ``value`` lies outside the support.
        """
        inside = self.check_value(value)
        states = self._states(value, hidden)
        energy = self.layers[-1].energy(states[-1])
        for layer, below, above in zip(self.layers, states, states[1:], strict=False):
            field = layer._coupled(layer.input_to_visible(above))
            energy = energy - log_prob_given(layer.visible_units, below, field)
        return energy if inside is True else jnp.where(inside, energy, jnp.inf)

    def log_recognition(
        self, value: Num[ArrayLike, "*batch n"], hidden: Sequence[Num[ArrayLike, "*batch m"]]
    ) -> Float[Array, "*batch"]:
        r"""Return :math:`\sum_k \log q(h_k \mid h_{k-1})` in nats, with :math:`h_0 = x`.

        Args:
            value: Visible values of shape ``batch + (num_visible,)``.
            hidden: Values of the hidden layers below the top one, from the bottom up.
        """
        states = self._states(value, hidden)
        total = jnp.zeros(())
        for rbm, below, above in zip(self.recognition, states[:-1], states[1:], strict=True):
            field = rbm._coupled(rbm.input_to_hidden(below))
            total = total + log_prob_given(rbm.hidden_units, above, field)
        return total

    # ----- draws ---------------------------------------------------------------------------

    def sample(
        self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "*batch n"]:
        """Draw visible values: the top machine as its ``sample`` does, then each layer below.

        Exact where the top machine is drawn exactly (at most 2^14 states of its smaller layer).
        """
        key_top, key_down = jax.random.split(require_key(key))
        return widen(self._below(key_down, self.top.sample(key_top, tuple(sample_shape))))

    @property
    def exact_terms(self) -> dict[str, int]:
        """All states of the smaller layer of the top machine."""
        return self.top.exact_terms

    def _draw_exactly(
        self, rng_key: Key[Array, ""], shape: tuple[int, ...], method: str
    ) -> Num[Array, "*batch n"]:
        key_top, key_down = jax.random.split(rng_key)
        return self._below(key_down, self.top.exact_sample(key_top, shape))

    def _below(self, rng_key: Key[Array, ""], top: Num[Array, "*batch m"]) -> Array:
        """Draw visible values given the visible units of the top machine."""
        return (*self._descend(rng_key, top), top)[0]

    def default_path(self, rng_key: Key[Array, ""], base: Any = None) -> Any:
        """Raise: log Z is that of the top machine, which has a path.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "DBN: log Z is that of the top machine; anneal that one, with "
            "ebm.evidence.ais(rng_key, dbn.top), and weigh data with "
            "ebm.evidence.variational_bound(rng_key, dbn, data)."
        )


def _as_machines(layers: Any, name: str) -> tuple[RBM, ...]:
    machines = tuple(layers) if isinstance(layers, Sequence) else (layers,)
    for layer in machines:
        if not isinstance(layer, RBM):
            raise TypeError(
                f"DBN: expected `{name}` to be a sequence of RBMs; got {type(layer).__name__}."
            )
    return machines
