"""Split a log density into one term for each unit, where it is provably such a sum.

A likelihood on the visible units of a model can join an exact block Gibbs step only if it is a
product over units. That is decided from the program itself, element by element: every element of
every array is labelled with the one unit it depends on, as a sum of functions of single units, or
as neither. The analysis errs on the safe side: what it does not understand counts as neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Float, Num

from numpyro_ebm.kernels.labels import MIXED, SUM, Labels, propagate

_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2",
          "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}  # fmt: skip


class _Step(NamedTuple):
    """One equation: where its inputs are cut into unit terms, or the program it calls."""

    equation: Any
    cuts: tuple[Labels, ...]
    called: _Program | None


class _Program(NamedTuple):
    jaxpr: Jaxpr
    consts: Sequence[Any]
    steps: list[_Step]
    out_labels: list[Labels]
    has_cuts: bool


def _called(equation: Any) -> tuple[Jaxpr, Sequence[Any]] | None:
    if equation.primitive.name not in _CALLS:
        return None
    inner = next(
        (equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params),
        None,
    )
    if isinstance(inner, ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return None if inner is None else (inner, ())


def _is_sum(labels: Labels) -> bool:
    return labels is not None and bool((labels == SUM).any())


def _single(labels: Labels) -> Labels:
    """Labels of the elements that depend on just one unit, if there are any."""
    return labels if labels is not None and bool((labels >= 0).any()) else None


def _analyse(
    jaxpr: Jaxpr, consts: Sequence[Any], inputs: list[Labels], known: list[Any]
) -> tuple[_Program, list[Any]]:
    """Label every variable and mark where unit terms enter sums.

    ``known`` holds the concrete values of inputs, ``None`` for those not known: positions in
    an array must be known to tell which unit is read.
    """
    labels: dict[Any, Labels] = dict(zip(jaxpr.invars, inputs, strict=True))
    values: dict[Any, Any] = dict(zip(jaxpr.invars, known, strict=True))
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        labels[var], values[var] = None, _concrete(const)
    steps, has_cuts = [], False
    for equation in jaxpr.eqns:
        ins = [None if isinstance(v, Literal) else labels[v] for v in equation.invars]
        own = [v.val if isinstance(v, Literal) else values[v] for v in equation.invars]
        inner = _called(equation)
        if inner is not None:
            program, results = _analyse(*inner, ins, own)
            outs, cuts = program.out_labels, (None,) * len(ins)
            inline = program.has_cuts or any(_is_sum(label) for label in ins)
            steps.append(_Step(equation, cuts, program if inline else None))
            has_cuts |= program.has_cuts
        else:
            outs, results = propagate(equation, ins, own), _evaluate_known(equation, ins, own)
            new_sum = any(_is_sum(out) for out in outs)
            cuts = tuple(_single(label) if new_sum else None for label in ins)
            steps.append(_Step(equation, cuts, None))
            has_cuts |= any(cut is not None for cut in cuts)
        for var, label, value in zip(equation.outvars, outs, results, strict=True):
            labels[var], values[var] = label, value
    out = [None if isinstance(v, Literal) else labels[v] for v in jaxpr.outvars]
    out_known = [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]
    return _Program(jaxpr, consts, steps, out, has_cuts), out_known


def _concrete(value: Any) -> Any:
    return None if isinstance(value, jax.core.Tracer) else value


def _bind(equation: Any, inputs: list[Any]) -> list[Any]:
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # older JAX: a pair
    out = equation.primitive.bind(*functions, *inputs, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def _evaluate_known(equation: Any, labels: list[Labels], known: list[Any]) -> list[Any]:
    """Values of an equation whose inputs are all known constants."""
    if any(label is not None for label in labels) or any(value is None for value in known):
        return [None] * len(equation.outvars)
    with jax.ensure_compile_time_eval():
        return [_concrete(value) for value in _bind(equation, known)]


class _Cuts:
    """Collects the unit terms of a run, adding a perturbation to each."""

    def __init__(self, perturbations: list[Array] | None) -> None:
        self.perturbations = perturbations
        self.values: list[Array] = []
        self.labels: list[np.ndarray] = []

    def __call__(self, value: Array, labels: Labels) -> Array:
        if labels is None:
            return value
        index = len(self.values)
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            value = value.astype(jnp.result_type(float))
        self.values.append(value)
        self.labels.append(labels)
        return value if self.perturbations is None else value + self.perturbations[index]


def _same_type(equation: Any, inputs: list[Any]) -> list[Any]:
    """Follow integer operands that a cut has made floating."""
    if equation.primitive.name not in ("add", "sub", "mul", "select_n", "concatenate", "pad"):
        return inputs
    start = 1 if equation.primitive.name == "select_n" else 0
    dtype = jnp.result_type(*inputs[start:])
    return inputs[:start] + [jnp.asarray(x).astype(dtype) for x in inputs[start:]]


def _run(program: _Program, inputs: Sequence[Any], cuts: _Cuts) -> list[Any]:
    environment = dict(zip(program.jaxpr.invars, inputs, strict=True))
    environment.update(zip(program.jaxpr.constvars, program.consts, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else environment[var]

    for step in program.steps:
        ins = [read(v) for v in step.equation.invars]
        if step.called is not None:
            outs = _run(step.called, ins, cuts)
        else:
            ins = [cuts(x, c) for x, c in zip(ins, step.cuts, strict=True)]
            outs = _bind(step.equation, _same_type(step.equation, ins))
        environment.update(zip(step.equation.outvars, outs, strict=True))
    return [read(v) for v in program.jaxpr.outvars]


def unit_terms(
    log_density: Callable[[Num[Array, "*shape"]], Float[Array, ""]], example: Num[Array, "*shape"]
) -> Callable[[Num[Array, "*shape"]], Float[Array, "*shape"]] | None:
    r"""Decompose :math:`\log p(x) = c + \sum_i \ell_i(x_i)` into its terms.

    Args:
        log_density: Scalar function of an array of units, in nats.
        example: An array of the shape and type of its argument.

    Returns:
        A function from values to the terms :math:`\ell_i(x_i)`, of the same shape, or ``None``
        if the function cannot be shown to be such a sum.

    Example:
        >>> import jax.numpy as jnp
        >>> terms = unit_terms(lambda x: -0.5 * ((x - 2.0) ** 2).sum(), jnp.zeros(3))
        >>> print(terms(jnp.array([0.0, 1.0, 2.0])))
        [-2.  -0.5  0. ]
        >>> unit_terms(lambda x: x.sum() ** 2, jnp.zeros(3)) is None
        True
    """
    closed = jax.make_jaxpr(log_density)(example)
    own = np.arange(example.size).reshape(example.shape)
    program, _ = _analyse(closed.jaxpr, closed.consts, [own], [None])
    (label,) = program.out_labels
    if label is not None and bool((label == MIXED).any()):
        return None

    def terms(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        def run(perturbations):
            cuts = _Cuts(perturbations)
            (out,) = _run(program, [x], cuts)
            return cuts(out, _single(label)), cuts

        shapes = jax.eval_shape(lambda: run(None)[1].values)
        zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        labels: list[np.ndarray] = []

        def total(perturbations):
            out, cuts = run(perturbations)
            labels[:] = cuts.labels
            return out, cuts.values

        if not zeros:
            return jnp.zeros(example.shape, jnp.result_type(float))
        slopes, values = jax.grad(total, has_aux=True)(zeros)
        split = jnp.zeros(example.size, jnp.result_type(*slopes))
        for slope, value, unit in zip(slopes, values, labels, strict=True):
            term = jnp.where(slope == 0, 0, slope * value)
            split = split.at[np.where(unit >= 0, unit, example.size)].add(term, mode="drop")
        return split.reshape(example.shape)

    return terms
