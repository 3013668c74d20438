"""Deep autoencoders unrolled from stacks of restricted Boltzmann machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Num, UInt8

from numpyro_ebm.distributions import RBM
from numpyro_ebm.models.feed_forward import check_rows, downward, machines_of, trained, upward
from numpyro_ebm.units import Bernoulli


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Autoencoder:
    r"""An encoder and a decoder with the weights of a stack of RBMs, to be fine-tuned.

    With the mean features of each layer given the one before it, from the data :math:`m_0 =
    \phi(x)` to the code :math:`m_L` and back,

    .. math:: m_k = \mathrm{E}[\phi(h_k) \mid m_{k-1} W_k], \qquad
        \hat m_{k-1} = \mathrm{E}[\phi(h_{k-1}) \mid V_k \hat m_k], \quad \hat m_L = m_L

    where V starts as W and is trained apart. ``model`` is a NumPyro model of the data given their
    own code, :math:`\log p(x \mid V_1 \hat m_1)`: the cross-entropy of binary units, whose data may
    also be gray levels from 0 to 1, and the squared error of Gaussian ones. It is a loss of
    reconstruction, not a likelihood of the data. ``SVI(autoencoder.model, guide, optim,
    Trace_ELBO())`` with an empty guide trains it; ``params["autoencoder"]`` is the autoencoder with
    the trained weights.

    With ``code_noise`` the inputs of the code units are disturbed while training, so that a code
    has to be far from 1/2 to be read: **semantic hashing**, whose ``codes`` are bits.

    It is a pytree of its two stacks of machines, of which it uses the weights, the hidden biases
    (``encoder``) and the visible biases (``decoder``). Scales of units are not trained.

    Args:
        encoder: Machines from the visible units up; see :meth:`unroll`.
        decoder: Likewise.
        code_noise: Standard deviation of the noise in training.

    Example:
        >>> import jax, jax.numpy as jnp, optax, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> data = jnp.tile(jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]]), (20, 1))
        >>> stack = ebm.fit_greedy(
        ...     jax.random.key(0), data, [3, 1], optim=optax.adam(0.05), num_epochs=5,
        ...     batch_size=20, progress_bar=False)
        >>> start = ebm.models.Autoencoder.unroll(stack.layers, code_noise=1.0)
        >>> svi = SVI(start.model, lambda data: None, optax.adam(0.05), Trace_ELBO())
        >>> result = svi.run(jax.random.key(1), 300, data, progress_bar=False)
        >>> autoencoder = result.params["autoencoder"]
        >>> bool(jnp.abs(autoencoder.reconstruct(data) - data).max() < 0.2)
        True
        >>> codes = autoencoder.codes(data)
        >>> codes.shape, codes.dtype.name
        ((40, 1), 'uint8')

    References:
        Hinton & Salakhutdinov (2006), "Reducing the Dimensionality of Data with Neural Networks",
        Science 313; Salakhutdinov & Hinton (2009), "Semantic Hashing", International Journal of
        Approximate Reasoning 50.
    """

    encoder: tuple[RBM, ...]
    decoder: tuple[RBM, ...]
    code_noise: float = field(default=0.0, metadata={"static": True})

    @classmethod
    def unroll(cls, layers: Sequence[RBM], *, code_noise: float = 0.0) -> Autoencoder:
        """Return the autoencoder of a trained stack.

        Args:
            layers: Machines from the visible units up, such as the ``layers`` of a DBN. The hidden
                units of the last one are the code: Gaussian for real codes, Bernoulli for bits.
            code_noise: Standard deviation of the noise on the inputs of the code units in training,
                in nats; 0 for none, 4 in semantic hashing.

        Raises:
            TypeError: A layer is no RBM.
            ValueError: Layers do not fit, or ``code_noise`` is negative.
        """
        if not code_noise >= 0:
            raise ValueError(
                f"Autoencoder: expected `code_noise` of at least 0; got {code_noise!r}."
            )
        machines = machines_of(layers, "Autoencoder")
        return cls(machines, machines, float(code_noise))

    def model(self, data: Num[ArrayLike, "rows n"]) -> None:
        """NumPyro model of rows given their own codes, at the site ``x``.

        Args:
            data: Rows of visible values.

        Raises:
            ValueError: ``data`` do not fit the visible units.
        """
        unit = self.encoder[0].visible_units
        rows: Any = check_rows("Autoencoder", unit, data)
        tuned = trained("autoencoder", self)
        noise: Any = 0.0
        if self.code_noise:
            code = self.encoder[-1].hidden_units
            shape = (len(rows), code.num_features)
            key: Any = numpyro.prng_key()
            noise = self.code_noise * jax.random.normal(key, shape, code.float_dtype)
        inputs = downward(tuned.decoder, upward(tuned.encoder, rows, noise))
        with numpyro.plate("rows", len(rows)):
            numpyro.sample("x", _observable(tuned.decoder[0].visible_units, inputs), obs=rows)

    def encode(self, data: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch code"]:
        """Mean features of the code units, without noise.

        Args:
            data: Visible values of shape ``batch + (n,)``.

        Raises:
            ValueError: ``data`` do not fit the visible units.
        """
        rows = check_rows("Autoencoder", self.encoder[0].visible_units, data)
        return upward(self.encoder, rows)

    def decode(self, code: Num[ArrayLike, "*batch code"]) -> Float[Array, "*batch features"]:
        """Mean features of the visible units, from a code: of Bernoulli units the probabilities.

        Args:
            code: What :meth:`encode` or :meth:`codes` gives.

        Raises:
            ValueError: The code has another number of features.
        """
        size = self.decoder[-1].hidden_units.num_features
        if jnp.shape(code)[-1:] != (size,):
            raise ValueError(
                f"Autoencoder: expected `code` of shape (..., {size}); got {jnp.shape(code)}."
            )
        features = jnp.asarray(code).astype(self.decoder[-1].weights.dtype)
        return self.decoder[0].visible_units.mean(downward(self.decoder, features))

    def reconstruct(self, data: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch features"]:
        """Mean features of the visible units, from the code of the same values."""
        return self.decode(self.encode(data))

    def codes(self, data: Num[ArrayLike, "*batch n"]) -> UInt8[Array, "*batch code"]:
        """Bits of the code: whether each code unit is more likely on than off.

        Args:
            data: Visible values of shape ``batch + (n,)``.

        Raises:
            ValueError: The code units are not Bernoulli units, or ``data`` do not fit.
        """
        unit = self.encoder[-1].hidden_units
        if not isinstance(unit, Bernoulli):
            raise ValueError(
                f"Autoencoder.codes: expected Bernoulli code units; got {unit!r}. Use `encode`."
            )
        return (self.encode(data) > 0.5).astype(jnp.uint8)


def _observable(unit: Any, inputs: Float[Array, "*batch f"]) -> dist.Distribution:
    """The conditional of visible units; of Bernoulli units also for values between 0 and 1."""
    if isinstance(unit, Bernoulli):
        return dist.Bernoulli(logits=unit.logits + inputs, validate_args=False).to_event(1)
    return unit.conditional(inputs)
