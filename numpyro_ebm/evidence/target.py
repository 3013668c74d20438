"""What the estimators ask of the model they are given."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from numpyro.util import not_jax_tracer

from numpyro_ebm.base import EnergyDistribution

_Tree = TypeVar("_Tree")


def check_target(target: Any, caller: str) -> EnergyDistribution:
    """Return the target if it is an energy-based distribution.

    Raises:
        TypeError: It is anything else.
    """
    if isinstance(target, EnergyDistribution):
        return target
    if isinstance(target, type):
        came = f"the class {target.__name__}, not an instance of it"
    elif inspect.isroutine(target):
        came = f"the function `{target.__name__}`"
    else:
        came = type(target).__name__
    raise TypeError(
        f"{caller}: expected `target` to be an EnergyDistribution, such as ebm.RBM; got {came}. "
        "NumPyro models are not supported as targets yet."
    )


def is_traced(tree: PyTree) -> bool:
    """Whether an array of the tree is being traced by a JAX transformation."""
    return not all(not_jax_tracer(leaf) for leaf in jax.tree.leaves(tree))


def in_float64(
    function: Callable[[_Tree], Float[Array, "*batch"]], tree: _Tree
) -> Float[np.ndarray, "*batch"]:
    """Evaluate a function of a pytree of concrete arrays in double precision.

    Args:
        function: Maps the tree to an array.
        tree: Its argument; floating arrays in it are converted to float64.
    """

    def widen(leaf: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return np.asarray(leaf, np.float64) if floating else leaf

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        arguments = jax.tree.map(lambda leaf: jnp.asarray(widen(leaf)), tree)
        return np.asarray(function(arguments), np.float64)
