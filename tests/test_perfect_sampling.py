"""Perfect sampling: draws against enumeration, monotone sweeps, and budgets that end."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_fit import fit_score
from jax import random
from pairwise_models import Brute, field_of, lattice_bonds

import numpyro_ebm as ebm
from numpyro_ebm import BoltzmannMachine, Ising, Potts, couplings
from numpyro_ebm.kernels import CouplingFromThePast, ExactDraws

COUPLING = "coupling_from_the_past"
NUM_DRAWS = 2500
GAUGE = np.array([1, -1, -1, 1, -1, 1, 1])


def unfrustrated(seed, n=7, gauge=GAUGE):
    """Couplings of both signs, some of them zero, that a change of signs makes positive."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.exponential(0.5, (n, n)) * (rng.random((n, n)) < 0.6), 1)
    return (upper + upper.T) * np.outer(gauge[:n], gauge[:n])


FIELD = field_of(50, 4, 4)
HUB_EDGES = [(0, 2), (0, 3), (1, 2), (2, 3), (2, 4)]
HUB = couplings.Edges(HUB_EDGES, np.array([1 / 64, 0.375, 1.25, 0.375, 1.25]))
HUB_FIELD = np.array([-0.125, 0.75, -0.625, -1.75, -1.0])
"""A model on which coupling from the past with known faults is far off."""
MODELS = {
    "periodic": lambda: Ising.lattice((4, 4), 0.3125, 0.03125),
    "free, fields": lambda: Ising.lattice((4, 4), 0.375, FIELD, periodic=False),
    "antiferromagnet": lambda: Ising.lattice((4, 4), -0.3125, FIELD),
    "dense": lambda: BoltzmannMachine(unfrustrated(0), field_of(51, 7)),
    "hidden": lambda: BoltzmannMachine(2 * unfrustrated(1), field_of(52, 7), num_visible=4),
    "sequential": lambda: Ising(HUB, HUB_FIELD, scan="sequential"),
    "random": lambda: Ising(HUB, HUB_FIELD, scan="random"),
}


def answers(name):
    """The model by enumeration of a list of bonds."""
    model = MODELS[name]()
    grid, kind = model.couplings.shape, "spin" if isinstance(model, Ising) else "binary"
    coupling = np.asarray(model.couplings.dense())
    bonds = [(i, j, coupling[i, j]) for i, j in itertools.combinations(range(len(coupling)), 2)]
    field = np.broadcast_to(np.asarray(model._site_field), grid).ravel()
    return model, Brute(kind, grid, [b for b in bonds if b[2]], field, model.num_visible)


@pytest.mark.parametrize("name", MODELS)
def test_coupling_from_the_past_agrees_with_enumeration(name):
    """Draws each from its own past; faults hide where draws wait for the slowest of many."""
    model, exact = answers(name)
    draw = jax.jit(jax.vmap(lambda key: CouplingFromThePast().draw(key, model, ())))
    draws = draw(random.split(random.key(1), NUM_DRAWS))
    assert jnp.all(draws.complete)
    assert len(jnp.unique(draws.num_sweeps)) > 2
    assert draws.value.shape == (NUM_DRAWS, *model.event_shape)
    assert fit_score(exact, draws.value) < 4


# ----- known faults ------------------------------------------------------------------------


def _chains(model):
    top, bottom, _ = model.monotone_states()
    return jnp.stack([top, bottom]), jax.vmap(model.gibbs_step, (None, 0))


def fresh_numbers(key, model):
    """Coupling from the past with new random numbers at every doubling: biased."""
    start, step = _chains(model)

    def run(state):
        window, _ = state

        def sweep(i, pair):
            return step(random.fold_in(random.fold_in(key, window), i), pair)

        return 2 * window, jax.lax.fori_loop(0, window, sweep, start)

    apart = lambda state: jnp.any(state[1][0] != state[1][1])  # noqa: E731
    return jax.lax.while_loop(apart, run, (jnp.asarray(1), start))[1][0]


def when_they_meet(key, model):
    """Coupling forward, read at the time when the chains meet: biased."""
    start, step = _chains(model)
    apart = lambda state: jnp.any(state[1][0] != state[1][1])  # noqa: E731
    run = lambda state: (state[0] + 1, step(random.fold_in(key, state[0]), state[1]))  # noqa: E731
    return jax.lax.while_loop(apart, run, (jnp.asarray(0), start))[1][0]


@pytest.mark.parametrize("fault", [fresh_numbers, when_they_meet])
def test_the_test_finds_known_faults(fault):
    model, exact = answers("sequential")
    draw = jax.jit(jax.vmap(lambda key: fault(key, model)))
    assert fit_score(exact, draw(random.split(random.key(0), NUM_DRAWS))) > 4


# ----- monotone sweeps ---------------------------------------------------------------------


def is_unfrustrated(matrix):
    """Whether some signs of the units make all couplings nonnegative."""
    return any(
        np.all(matrix * np.outer(signs, signs) >= 0)
        for signs in itertools.product([-1, 1], repeat=len(matrix))
    )


def test_frustration_is_found():
    rng = np.random.default_rng(3)
    matrices = np.triu(rng.choice([-1.0, 0.0, 1.0], (200, 5, 5), p=[0.3, 0.4, 0.3]), 1)
    matrices = matrices + matrices.swapaxes(1, 2)
    expected = [is_unfrustrated(matrix) for matrix in matrices]
    assert 50 < np.sum(expected) < 150
    holds = Ising(matrices, 0.0).monotone_states()[2]
    assert np.array_equal(holds, expected)
    assert np.array_equal(BoltzmannMachine(matrices, 0.0).monotone_states()[2], expected)
    pairs = list(itertools.combinations(range(5), 2))
    edges = couplings.Edges(pairs, matrices[:, *np.transpose(pairs)])
    assert np.array_equal(jax.jit(lambda e: Ising(e, 0.0).monotone_states()[2])(edges), expected)


def test_frustration_of_lattices():
    def holds(*args, **kwargs):
        return bool(Ising.lattice(*args, **kwargs).monotone_states()[2])

    assert holds((4, 6), -0.5)
    assert not holds((4, 5), -0.5)
    assert holds((4, 5), -0.5, periodic=False)
    assert holds((3, 3), 0.0)
    assert holds((1, 3), 0.5)
    signs = np.ones((2, 3))
    signs[0, 0] = -0.25  # outweighed by the other of the two bonds
    assert holds((2, 3), [jnp.asarray(signs), jnp.ones((2, 3))])
    signs[0, 0] = -1.25
    assert not holds((2, 3), [jnp.asarray(signs), jnp.ones((2, 3))])


@pytest.mark.parametrize("name", MODELS)
def test_sweeps_keep_the_order(name):
    """Sweeps with the same key take ordered states to ordered states, and the ends are the ends."""
    model = MODELS[name]()
    top, bottom, holds = model.monotone_states()
    assert holds
    units = model.couplings.shape

    def join(chain):
        flat = [x.reshape(*x.shape[: x.ndim - len(units)], -1) for x in jax.tree.leaves(chain)]
        return jnp.concatenate(flat, -1)

    def step(seed, flat):
        chain = model.as_chain(flat.reshape(-1, *units).astype(top.dtype))
        return join(model.gibbs_step(random.key(seed), chain))

    top, bottom = join(top), join(bottom)
    rng = np.random.default_rng(0)
    upper = rng.random((2, 200, top.size)) < 0.5
    low, high = (jnp.where(x, top, bottom) for x in (upper[0] & upper[1], upper[0] | upper[1]))
    for seed in range(3):
        low, high = step(seed, low), step(seed, high)
        assert jnp.all((low == high) | (high == top))
    assert jnp.any(low != high) or name == "random"


def test_frustrated_couplings_are_refused():
    with pytest.raises(ValueError, match="frustrated"):
        ebm.perfect_sample(random.key(0), Ising.lattice((3, 15), -0.2), method=COUPLING)
    with pytest.raises(ValueError, match="frustrated"):
        ebm.perfect_sample(random.key(0), Ising.lattice((31, 31), -0.2))
    draws = CouplingFromThePast().draw(random.key(0), Ising.lattice((3, 15), -0.2), ())
    assert not draws.complete


@pytest.mark.parametrize(
    "model",
    [
        lambda: Potts.lattice((15, 15), 0.3, 3),
        lambda: ebm.RBM(jnp.ones((25, 25)), jnp.zeros(25), jnp.zeros(25)),
        lambda: Ising(np.asarray(couplings.Lattice((5, 5), -0.5).dense()), 0.0),
    ],
)
def test_models_without_perfect_draws_are_refused(model):
    with pytest.raises(ValueError, match="Coupling from the past needs .* Run long chains"):
        ebm.perfect_sample(random.key(0), model())


# ----- budget, method, transformations -----------------------------------------------------


def test_a_budget_that_ends_raises():
    cold = Ising.lattice((16, 16), 0.6)
    with pytest.raises(ebm.CoalescenceError, match="within 50 sweeps"):
        ebm.perfect_sample(random.key(0), cold, method=COUPLING, max_sweeps=50)
    draws = CouplingFromThePast(50).draw(random.key(0), cold, (3,))
    assert not draws.complete
    assert draws.num_sweeps == 50


def test_the_budget_does_not_change_the_draw():
    model = Ising.lattice((8, 8), 0.3)
    draws = [CouplingFromThePast(n).draw(random.key(0), model, (5,)) for n in (2**16, 200)]
    assert draws[0].complete
    assert draws[1].complete
    assert draws[0].num_sweeps <= 128
    assert jnp.array_equal(draws[0].value, draws[1].value)


def test_draws_of_a_batch():
    fields = jnp.array([-0.5, 0.0, 0.5]).reshape(3, 1, 1)
    model = Ising.lattice((3, 3), 0.25, fields)
    draws = ebm.perfect_sample(random.key(0), model, (1000,), method=COUPLING).value
    assert draws.shape == (1000, 3, 3, 3)
    for k, field in enumerate([-0.5, 0.0, 0.5]):
        exact = Brute("spin", (3, 3), lattice_bonds((3, 3), 0.25), np.full(9, field))
        assert fit_score(exact, draws[:, k]) < 4


def test_jit_and_vmap():
    draw = lambda key, coupling: CouplingFromThePast().draw(  # noqa: E731
        key, Ising.lattice((3, 3), coupling), (2,)
    )
    keys, values = random.split(random.key(0), 3), jnp.array([0.1, -0.3, 0.4])
    batched = jax.jit(jax.vmap(draw))(keys, values)
    assert batched.complete.tolist() == [True, False, True]
    for k in (0, 2):
        assert jnp.array_equal(batched.value[k], draw(keys[k], values[k]).value)
    with pytest.raises(TypeError, match="cannot raise"):
        jax.jit(
            lambda key: ebm.perfect_sample(key, Ising.lattice((3, 3), 0.1), method=COUPLING).value
        )(random.key(0))


def test_methods():
    model = Ising.lattice((3, 3), 0.25)
    assert ebm.perfect_sample(random.key(0), model).num_sweeps == 0
    assert ebm.perfect_sample(random.key(0), model, method="enumeration").method == "enumeration"
    assert ebm.perfect_sample(random.key(0), Ising.lattice((20, 20), 0.1)).method == COUPLING
    with pytest.raises(ValueError, match="one of"):
        ebm.perfect_sample(random.key(0), model, method="gibbs")
    with pytest.raises(ValueError, match="cannot be drawn by 'enumeration'"):
        ebm.perfect_sample(random.key(0), Ising.lattice((20, 20), 0.1), method="enumeration")
    with pytest.raises(TypeError, match="energy-based"):
        ebm.perfect_sample(random.key(0), jnp.ones(3))
    with pytest.raises(ValueError, match="max_sweeps"):
        CouplingFromThePast(0)


def test_exact_draws_agree_with_enumeration():
    model, exact = answers("hidden")
    draws = ExactDraws().draw(random.key(0), model, (NUM_DRAWS,))
    assert draws.complete
    assert draws.num_sweeps == 0
    assert fit_score(exact, draws.value) < 4


@pytest.mark.slow
def test_many_states_are_drawn_in_two_steps():
    model, exact = answers("free, fields")  # 2^16 states
    draws = model.exact_sample(random.key(2), (NUM_DRAWS,), method="enumeration")
    assert fit_score(exact, draws) < 4


def test_exact_draws_of_a_large_model_are_refused():
    model = Ising.lattice((30, 30), 0.1)
    assert model.exact_sampler is None
    with pytest.raises(ebm.NormalizerError, match="Run chains instead"):
        model.exact_sample(random.key(0))
