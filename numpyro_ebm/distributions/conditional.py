"""The restricted Boltzmann machine whose biases depend on inputs."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from numpyro_ebm.distributions.products import dot
from numpyro_ebm.distributions.rbm import RBM, check_finite, floating
from numpyro_ebm.distributions.rbm_sweeps import RBMSweeps
from numpyro_ebm.units import Unit

__all__ = ["ConditionalRBM"]


class ConditionalRBM(RBM):
    r"""Restricted Boltzmann machine given inputs u, which shift the biases of both layers.

    .. math:: E(v, h \mid u) = E_v(v) + E_h(h) - \phi(v)^T W \phi(h)
        - u^T A \phi(v) - u^T B \phi(h)

    up to terms without v and h. The directed weights A and B are no part of the sum over states:
    given u this is an RBM with biases :math:`b + A^T u` and :math:`c + B^T u` (of Gaussian and
    ReLU units the location moves, by :math:`\sigma^2 A^T u`), with a :math:`\log Z(u)` of its own.
    Leading dimensions of ``condition`` are batch dimensions, one RBM for each input, so that
    everything an RBM has is here for each of them: exact log Z, conditionals, Gibbs sweeps and
    losses. With the frames before v as the input it is the model of Taylor, Hinton & Roweis; see
    :class:`~numpyro_ebm.AutoregressiveRBM` for whole sequences.

    Train it by :class:`~numpyro_ebm.ContrastiveDivergence`, exact
    :class:`~numpyro_ebm.MaximumLikelihood` or :class:`~numpyro_ebm.PseudoLikelihood`, with one
    input for each row of a plate. Persistent chains are refused: a chain that went on from the
    inputs of one minibatch to those of the next would sample neither density.

    Args:
        weights: W, as in :class:`~numpyro_ebm.RBM`.
        visible: A unit, or an array of Bernoulli logits: the biases b where u is zero.
        hidden: Likewise, c.
        visible_weights: A of shape ``(num_inputs,) + visible.feature_shape``, with batch
            dimensions in front, or ``None`` for no influence.
        hidden_weights: B of shape ``(num_inputs,) + hidden.feature_shape``, likewise.
        condition: u of shape ``batch + (num_inputs,)``.
        normalizer: What ``log_prob`` knows of log Z(u), see
            :class:`~numpyro_ebm.EnergyDistribution`. The guard is on the inputs too.
        validate_args: Whether parameters and values are checked.

    Raises:
        ValueError: Shapes do not match, a parameter or an input is not finite, or as in
            :class:`~numpyro_ebm.RBM`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, optax, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(u, v):
        ...     a = numpyro.param("a", jnp.zeros((1, 4)))
        ...     w = numpyro.param("w", 0.01 * jnp.ones((4, 2)))
        ...     rbm = ebm.ConditionalRBM(w, jnp.zeros(4), jnp.zeros(2), a, None, u)
        ...     with numpyro.plate("rows", len(u)):
        ...         numpyro.sample("v", rbm, obs=v)
        >>> u = jnp.array([[1.0], [0.0]])
        >>> v = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]])
        >>> svi = SVI(model, lambda u, v: None, optax.adam(0.1), ebm.ContrastiveDivergence())
        >>> params = svi.run(jax.random.key(0), 100, u, v, progress_bar=False).params
        >>> bool(params["a"][0, 0] > params["a"][0, 2])
        True

    References:
        Taylor, Hinton & Roweis (2007), "Modeling Human Motion Using Binary Latent Variables",
        section 3; Mnih, Larochelle & Hinton (2011), "Conditional Restricted Boltzmann Machines for
        Structured Output Prediction", sections 2 and 3 (why not PCD).
    """

    pytree_data_fields = (
        "own_visible",
        "own_hidden",
        "visible_weights",
        "hidden_weights",
        "condition",
    )
    is_conditional = True

    def __init__(
        self,
        weights: Float[ArrayLike, "*batch"],
        visible: Unit | Float[ArrayLike, "*batch num_visible"],
        hidden: Unit | Float[ArrayLike, "*batch num_hidden"],
        visible_weights: Float[ArrayLike, "*batch"] | None,
        hidden_weights: Float[ArrayLike, "*batch"] | None,
        condition: Float[ArrayLike, "*batch num_inputs"],
        *,
        normalizer: str | ArrayLike = "guard",
        validate_args: bool | None = None,
    ) -> None:
        self.visible_weights = _optional(visible_weights, "visible_weights")
        self.hidden_weights = _optional(hidden_weights, "hidden_weights")
        self.condition = floating(condition, "condition")
        if self._validate_args if validate_args is None else validate_args:
            for name in ("visible_weights", "hidden_weights", "condition"):
                check_finite("ConditionalRBM", name, getattr(self, name))
        super().__init__(
            weights, visible, hidden, normalizer=normalizer, validate_args=validate_args
        )

    @classmethod
    def gather_pytree_data_fields(cls) -> tuple[str, ...]:
        """Names of the parameters; the units given the inputs are made from them."""
        derived = ("visible_units", "hidden_units")
        return tuple(f for f in super().gather_pytree_data_fields() if f not in derived)

    def _set_units(self, visible: Unit, hidden: Unit) -> None:
        self.own_visible, self.own_hidden = visible, hidden
        self.condition = self.condition.astype(self.weights.dtype)
        for name, weights, unit in self._directed:
            event = self.condition.shape[-1:] + unit.feature_shape
            if weights is not None and weights.shape[-len(event) :] != event:
                raise ValueError(
                    f"ConditionalRBM: expected `{name}` of shape (..., "
                    f"{', '.join(map(str, event))}) for `condition` of shape "
                    f"{self.condition.shape} and units with features {unit.feature_shape}; got "
                    f"{weights.shape}."
                )

    @property
    def _directed(self) -> tuple[tuple[str, Array | None, Unit], ...]:
        return (
            ("visible_weights", self.visible_weights, self.own_visible),
            ("hidden_weights", self.hidden_weights, self.own_hidden),
        )

    # ----- given the inputs ----------------------------------------------------------------

    @property
    def support(self) -> constraints.Constraint:
        """Support of the visible units, the same for all inputs."""
        return self.own_visible.support

    @property
    def num_hidden(self) -> int:
        """Number of hidden units."""
        return self.own_hidden.shape[0]

    @property
    def visible_units(self) -> Unit:  # ty: ignore[incompatible-property-override]
        """Visible units given the inputs: their own, with the biases shifted."""
        return self._given(self.own_visible, self.visible_weights)

    @property
    def hidden_units(self) -> Unit:  # ty: ignore[incompatible-property-override]
        """Hidden units given the inputs."""
        return self._given(self.own_hidden, self.hidden_weights)

    def _given(self, unit: Unit, weights: Array | None) -> Unit:
        if weights is None:
            return unit
        event = len(unit.feature_shape)
        matrix = weights.reshape(*weights.shape[: weights.ndim - event], unit.num_features)
        return unit.in_field(dot(self.condition, matrix))

    @property
    def rbm(self) -> RBM:
        """The unnormalized RBM given the inputs, without the weights they come by."""
        return self.with_parts((self.weights, self.visible_units, self.hidden_units))

    def given(self, condition: Float[ArrayLike, "*batch num_inputs"]) -> ConditionalRBM:
        """Return the model given other inputs; a known log Z is not known of them.

        Args:
            condition: Inputs of shape ``batch + (num_inputs,)``.
        """
        return ConditionalRBM(
            self.weights,
            self.own_visible,
            self.own_hidden,
            self.visible_weights,
            self.hidden_weights,
            condition,
            normalizer="guard" if self.normalizer == "known" else self.normalizer,
            validate_args=self._validate_args,
        )

    def with_centered_gradient(
        self, visible_offset: Float[Array, " f"], hidden_offset: Float[Array, " g"]
    ) -> RBMSweeps:
        """Raise: the weights of the inputs have no place in the centered gradient.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            'gradient="centered" or "enhanced": expected an RBM; got a ConditionalRBM. Use '
            'gradient="plain", if need be with ConditionalRBM.from_centered.'
        )


def _optional(weights: Any, name: str) -> Array | None:
    return None if weights is None else floating(weights, name)
