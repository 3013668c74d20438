"""A NumPyro model as the product of a prior and a likelihood over unconstrained latent values."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Key
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.util import is_identically_one
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.gibbs import latent_sample_sites, prototype_trace
from numpyro.util import not_jax_tracer

from numpyro_ebm.evidence.enumeration import Enumeration
from numpyro_ebm.evidence.model_checks import check_known_normalizers, check_model
from numpyro_ebm.evidence.unconstrained import (
    constrain_site,
    is_log_det,
    log_det_name,
    unconstrained_shape,
)

Vectors = Float[Array, "*batch n"]


class Parts(NamedTuple):
    """Logarithms of the two factors of a model, in nats.

    Attributes:
        log_prior: Density of the latent sites in unconstrained space, with the Jacobian.
        log_likelihood: Density of the observed sites and factors given the latent ones.
    """

    log_prior: Float[Array, "*batch"]
    log_likelihood: Float[Array, "*batch"]


class ModelTarget:
    r"""The joint density of a NumPyro model, in one vector of unconstrained latent values.

    :math:`p(y, u) = p(y \mid \theta(u))\, p(\theta(u))\, |\det \partial \theta / \partial u|`. Its
    integral over u is the marginal likelihood p(y). A kernel can take it as target.

    Discrete latent sites z that the model marks ``infer={"enumerate": "parallel"}`` are summed out:
    the prior is :math:`\sum_z p(\theta, z)` and the likelihood
    :math:`\sum_z p(y, \theta, z) / \sum_z p(\theta, z)`.

    Args:
        caller: The function that asks, for error messages.
        model: A NumPyro model.
        model_args: Its positional arguments.
        model_kwargs: Its keyword arguments.
        needs_prior: Whether the prior must be proper and can be drawn from.
        needs_likelihood: Whether a pseudolikelihood is refused.

    Raises:
        ValueError: The model has no latent sites, subsampled plates, discrete latent sites that
            are not marked or cannot be enumerated, or (if ``needs_prior``) an improper prior.
        ImportError: The model marks discrete sites and funsor is not installed.
        NormalizerError: Log Z of an energy-based site is unknown, or given as a number while its
            parameters depend on latent sites.
    """

    batch_shape: tuple[int, ...] = ()
    unit_states = None
    support = constraints.real_vector

    def __init__(
        self,
        caller: str,
        model: Callable[..., Any],
        model_args: Sequence[Any] = (),
        model_kwargs: Mapping[str, Any] | None = None,
        *,
        needs_prior: bool = False,
        needs_likelihood: bool = True,
    ) -> None:
        self.caller, self.model = caller, model
        self.args, self.kwargs = tuple(model_args), dict(model_kwargs or {})
        self._compiled: dict[Any, Callable[..., Any]] = {}
        prototype = self.prototype()
        self.sites = check_model(
            caller, prototype, needs_prior=needs_prior, needs_likelihood=needs_likelihood
        )
        self.shapes = {name: unconstrained_shape(prototype[name]) for name in self.sites}
        self.event_shape = (sum(int(np.prod(s)) for s in self.shapes.values()),)
        self.data_hash = hash_of_data(prototype)
        latent = latent_sample_sites(prototype)
        check_known_normalizers(caller, self._program, prototype, latent)
        self.enumeration = Enumeration.of(caller, prototype)
        if self.enumeration is not None:
            self.enumeration.check_supports(caller, self._program, prototype, self.sites)

    def compiled(
        self, function: Callable[..., Any], static: tuple[int, ...] = (2,)
    ) -> Callable[..., Any]:
        """``jax.jit(function)``, kept as long as this target."""
        if function not in self._compiled:
            self._compiled[function] = jax.jit(function, static_argnums=static)
        return self._compiled[function]

    # ----- densities -----------------------------------------------------------------------

    def parts(self, value: Vectors) -> Parts:
        """Log prior and log likelihood of unconstrained vectors, in nats."""
        return Parts(*jnp.vectorize(self._parts, signature="(n)->(),()")(value))

    def energy(self, value: Vectors) -> Float[Array, "*batch"]:
        """Negative log joint density in nats."""
        return -jnp.vectorize(self._log_joint, signature="(n)->()")(value)

    def log_prior_weight(
        self, rng_key: Key[Array, ""], params: Mapping[str, Array]
    ) -> Float[Array, ""]:
        """Log density of some latent sites given those before them, which are drawn, in nats.

        Drawn around ``params`` in the order of the model, so that the exponential averages to the
        prior density of ``params`` (likelihood weighting).

        Args:
            rng_key: Random key.
            params: Unconstrained values of these sites.
        """
        model = substitute(seed(self.model, rng_key), substitute_fn=partial(constrain_site, params))
        model_trace = trace(model).get_trace(*self.args, **self.kwargs)
        sites = [model_trace[name] for name in (*params, *map(log_det_name, params))]
        return sum((jnp.sum(s["fn"].log_prob(s["value"])) for s in sites), start=jnp.zeros(()))

    def check_prior(self) -> None:
        """Raise unless the prior is proper and can be drawn from."""
        check_model(self.caller, self.prototype(), needs_prior=True)

    def prototype(self) -> OrderedDict[str, Any]:
        """A trace of the model."""
        with jax.ensure_compile_time_eval():
            return prototype_trace(self.model, jax.random.key(0), self.args, self.kwargs)

    @property
    def _program(self) -> Callable[[], Any]:
        return partial(self.model, *self.args, **self.kwargs)

    def _log_joint(self, vector: Float[Array, " n"]) -> Array:
        if self.enumeration is not None:
            return self.enumeration.log_joint(self._program, self.unravel(vector))
        log_prior, log_likelihood = self._parts(vector)
        return log_prior + log_likelihood

    def _parts(self, vector: Float[Array, " n"]) -> tuple[Array, Array]:
        if self.enumeration is not None:
            return self.enumeration.parts(self._program, self.unravel(vector))
        model_trace = self.trace_at(vector)
        log_prior, log_likelihood = jnp.zeros((), vector.dtype), jnp.zeros((), vector.dtype)
        for name, site in model_trace.items():
            if site["type"] != "sample":
                continue
            log_prob = site["fn"].log_prob(site["value"], *filter(None, [site["intermediates"]]))
            if is_log_det(name):  # a change of measure: no scale applies to it
                log_prior = log_prior + jnp.sum(log_prob)
                continue
            if site["scale"] is not None and not is_identically_one(site["scale"]):
                log_prob = site["scale"] * log_prob
            if site["is_observed"]:
                log_likelihood = log_likelihood + jnp.sum(log_prob)
            else:
                log_prior = log_prior + jnp.sum(log_prob)
        return log_prior, log_likelihood

    def trace_at(self, vector: Float[Array, " n"]) -> dict[str, Any]:
        """A trace of the model at an unconstrained vector."""
        params = self.unravel(vector)
        model = substitute(
            seed(self.model, jax.random.key(0)), substitute_fn=partial(constrain_site, params)
        )
        return trace(model).get_trace(*self.args, **self.kwargs)

    # ----- values --------------------------------------------------------------------------

    def unravel(self, value: Vectors) -> dict[str, Array]:
        """Unconstrained values of the sites from vectors."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        pieces = jnp.split(value, np.cumsum(sizes)[:-1], axis=-1)
        lead = jnp.shape(value)[:-1]
        return {
            name: piece.reshape(lead + shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def constrain(self, value: Vectors) -> dict[str, Array]:
        """Values of the latent sites from unconstrained vectors."""

        def one(vector):
            model_trace = self.trace_at(vector)
            return {name: model_trace[name]["value"] for name in self.sites}

        for _ in range(jnp.ndim(value) - 1):
            one = jax.vmap(one)
        return one(value)

    def unconstrain(self, draws: Mapping[str, Any], num_batch_dims: int) -> Vectors:
        """Unconstrained vectors from values of the latent sites.

        Args:
            draws: Values by site, batch dimensions first.
            num_batch_dims: Number of batch dimensions.

        Raises:
            ValueError: A site is missing.
        """
        missing = [name for name in self.sites if name not in draws]
        if missing:
            raise ValueError(
                f"{self.caller}: expected `draws` of every latent site {self.sites}; "
                f"{missing} are missing."
            )

        def one(sites):
            model = substitute(seed(self.model, jax.random.key(0)), data=sites)
            model_trace = trace(model).get_trace(*self.args, **self.kwargs)
            return self.ravel(model_trace)

        for _ in range(num_batch_dims):
            one = jax.vmap(one)
        return one({name: jnp.asarray(draws[name]) for name in self.sites})

    def ravel(self, model_trace: Mapping[str, Any]) -> Float[Array, " n"]:
        """The unconstrained vector of the values in a trace."""
        pieces = []
        for name in self.sites:
            site = model_trace[name]
            transform = biject_to(site["fn"].support)
            pieces.append(jnp.ravel(transform._inverse(jnp.asarray(site["value"]))))
        return jnp.concatenate(pieces)

    def sample_prior(self, rng_key: Key[Array, ""], num_samples: int) -> Vectors:
        """Independent draws from the prior, as unconstrained vectors."""

        def one(key):
            return self.ravel(trace(seed(self.model, key)).get_trace(*self.args, **self.kwargs))

        return jax.vmap(one)(jax.random.split(rng_key, num_samples))

    # ----- a pytree of the arrays among its arguments --------------------------------------

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Arrays are leaves; everything else is static."""
        leaves, treedef = jax.tree.flatten((self.args, self.kwargs))
        is_array = tuple(isinstance(x, np.ndarray | jax.Array) for x in leaves)
        arrays = tuple(x for x, yes in zip(leaves, is_array, strict=True) if yes)
        others = tuple(x for x, yes in zip(leaves, is_array, strict=True) if not yes)
        shapes = tuple(self.shapes.items())
        fixed = self.caller, self.model, self.sites, shapes, self.event_shape, self.data_hash
        return arrays, (is_array, others, treedef, (*fixed, self.enumeration))

    @classmethod
    def tree_unflatten(cls, aux: Any, arrays: Any) -> ModelTarget:
        """Put the arrays back among the arguments."""
        is_array, others, treedef, fixed = aux
        array, other = iter(arrays), iter(others)
        leaves = [next(array) if yes else next(other) for yes in is_array]
        target = object.__new__(cls)
        target._compiled = {}
        target.args, target.kwargs = jax.tree.unflatten(treedef, leaves)
        target.caller, target.model, target.sites, shapes, *rest = fixed
        target.event_shape, target.data_hash, target.enumeration = rest
        target.shapes = dict(shapes)
        return target


jax.tree_util.register_pytree_node_class(ModelTarget)


def hash_of_data(model_trace: Mapping[str, Any]) -> str | None:
    """Fingerprint of the observed values of a model, whatever the sites are called.

    Factors are not data. ``None`` if there are no observed values, or they are traced.
    """
    digests = []
    for site in model_trace.values():
        is_data = site["type"] == "sample" and site["is_observed"]
        if not is_data or type(site["fn"]).__name__ == "Unit" or np.size(site["value"]) == 0:
            continue
        if not not_jax_tracer(site["value"]):
            return None
        value: Float64[np.ndarray, ...] = np.asarray(site["value"], np.float64)
        flat = np.sort(np.nan_to_num(value).ravel())
        digests.append(hashlib.sha256(str(flat.size).encode() + flat.tobytes()).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16] if digests else None
