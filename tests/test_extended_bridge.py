"""The evidence of models with an unknown log Z against sums over a grid and all states."""

import itertools
from functools import cache

import ising_exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from evidence_models import FlipOne, calibration
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import logsumexp

import numpyro_ebm as ebm
from numpyro_ebm.base import unwrap
from numpyro_ebm.evidence import EvidenceWarning, bridge, compare, exact, extended_bridge
from numpyro_ebm.evidence.extended_bridge import _spread_doubts
from numpyro_ebm.evidence.model import ModelTarget
from numpyro_ebm.evidence.parameter_path import by_replicate, parameter_paths
from numpyro_ebm.kernels import GibbsWithGradientsStep
from numpyro_ebm.kernels.auxiliary import AuxiliaryChain
from numpyro_ebm.kernels.intractable import Unnormalized

SCALE = 0.2
"""Of every prior."""
COUPLINGS, FIELDS = np.linspace(-0.6, 1.0, 401), np.linspace(-0.9, 0.9, 61)


# ----- the truth ------------------------------------------------------------------------------


@cache
def row_states(width):
    return np.array(list(itertools.product([-1, 1], repeat=width)))


@cache
def lattice_log_z(size, with_field):
    """Log Z of a periodic lattice on the grid, by a transfer matrix in float64."""
    rows = row_states(size)
    inner, across, total = (rows * np.roll(rows, 1, 1)).sum(1), rows @ rows.T, rows.sum(1)
    log_z = []
    for coupling, field in itertools.product(COUPLINGS, FIELDS if with_field else [0.0]):
        half = coupling * inner / 2 + field * total / 2
        transfer = np.exp(coupling * across + half[:, None] + half)
        log_z.append(np.log(np.trace(np.linalg.matrix_power(transfer, size))))
    return np.reshape(log_z, (len(COUPLINGS), -1))


PAIRS = np.array(list(itertools.product([0, 1], repeat=8)))
NUM_ON = PAIRS.sum(1)
PAIRS = NUM_ON * (NUM_ON - 1) / 2


@cache
def machine_log_z():
    terms = COUPLINGS[:, None, None] * PAIRS + FIELDS[:, None] * NUM_ON
    return logsumexp(terms, axis=-1)


def lattice(rows, size=4, with_field=False, normalizer="guard"):
    coupling = numpyro.sample("coupling", dist.Normal(0, SCALE))
    field = numpyro.sample("field", dist.Normal(0, SCALE)) if with_field else 0.0
    with numpyro.plate("rows", len(rows)):
        model = ebm.Ising.lattice((size, size), coupling, field, normalizer=normalizer)
        numpyro.sample("s", model, obs=rows)


def machine(rows):
    coupling = numpyro.sample("coupling", dist.Normal(0, SCALE))
    field = numpyro.sample("field", dist.Normal(0, SCALE))
    model = ebm.BoltzmannMachine(coupling * (jnp.ones((8, 8)) - jnp.eye(8)), field)
    with numpyro.plate("rows", len(rows)):
        numpyro.sample("s", model, obs=rows)


def cells(rows, kind):
    """Log of the joint density on the grid, times the size of a cell."""
    if kind == "machine":
        on = rows.sum(1)
        energies = [(on * (on - 1) / 2).sum(), on.sum()]
        log_z = machine_log_z()
    else:
        bonds = (rows * np.roll(rows, 1, 1)).sum() + (rows * np.roll(rows, 1, 2)).sum()
        energies = [bonds, rows.sum()]
        log_z = lattice_log_z(rows.shape[1], kind == "field")
    has_field = kind != "coupling"
    fields = FIELDS if has_field else np.zeros(1)
    constant = np.log(SCALE * np.sqrt(2 * np.pi))
    log_p = -((COUPLINGS[:, None] / SCALE) ** 2) / 2 - constant + COUPLINGS[:, None] * energies[0]
    if has_field:
        log_p = log_p - (fields / SCALE) ** 2 / 2 - constant + fields * energies[1]
        log_p = log_p + np.log(FIELDS[1] - FIELDS[0])
    return log_p - len(rows) * log_z + np.log(COUPLINGS[1] - COUPLINGS[0])


def posterior_draws(log_cells, seed, shape=(2, 500)):
    """Independent draws, uniform within cells of the grid."""
    rng = np.random.default_rng(seed)
    p = np.exp(log_cells - logsumexp(log_cells)).ravel()
    place = np.unravel_index(rng.choice(p.size, shape, p=p), log_cells.shape)
    within = rng.uniform(-0.5, 0.5, (2, *shape))
    draws = {"coupling": COUPLINGS[place[0]] + within[0] * (COUPLINGS[1] - COUPLINGS[0])}
    if log_cells.shape[1] > 1:
        draws["field"] = FIELDS[place[1]] + within[1] * (FIELDS[1] - FIELDS[0])
    return draws


def rows_of(kind, size, num_rows):
    rng = np.random.default_rng(size + num_rows)
    if kind == "machine":
        p = np.exp(0.1 * PAIRS - 0.3 * NUM_ON)
        states = np.array(list(itertools.product([0, 1], repeat=8)))
        return states[rng.choice(256, num_rows, p=p / p.sum())]
    field = 0.1 * (kind == "field")
    model = ebm.Ising.lattice((size, size), 0.2, field)
    return np.asarray(model.sample(jax.random.key(size), (num_rows,)))


CASES = {
    "3x3": ("coupling", 3, 1, 10),
    "3x3, 5 rows": ("coupling", 3, 5, 10),
    "4x4": ("coupling", 4, 1, 20),
    "4x4, 5 rows": ("coupling", 4, 5, 40),
    "4x4 field, 5 rows": ("field", 4, 5, 40),
    "6x6": ("coupling", 6, 1, 40),
    "6x6, 5 rows": ("coupling", 6, 5, 80),
    "6x6 field": ("field", 6, 1, 40),
    "machine": ("machine", 8, 1, 20),
    "machine, 5 rows": ("machine", 8, 5, 40),
}


@cache
def case(name):
    """The model, its data, log p(y, theta) on the grid, and settings."""
    kind, size, num_rows, num_temperatures = CASES[name]
    rows = rows_of(kind, size, num_rows)
    log_cells = cells(rows, kind)
    options = {"model_args": (rows,), "num_temperatures": num_temperatures}
    if kind != "machine":
        options["model_kwargs"] = {"size": size, "with_field": kind == "field"}
    return machine if kind == "machine" else lattice, rows, log_cells, options


@cache
def estimate(name):
    model, _, log_cells, options = case(name)
    return extended_bridge(jax.random.key(0), model, posterior_draws(log_cells, 0), **options)


def z_of(name):
    found = estimate(name)
    return (found.log_evidence - logsumexp(case(name)[2])) / found.std_error


DEFAULT = ["3x3, 5 rows", "machine, 5 rows"]


@pytest.mark.parametrize("name", DEFAULT)
def test_evidence_is_that_of_the_grid(name):
    found = estimate(name)
    assert found.ok
    assert found.diagnostics["exact_draws"]
    assert found.std_error < 0.05
    assert abs(found.log_evidence - logsumexp(case(name)[2])) < 4 * found.std_error


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - set(DEFAULT)))
def test_evidence_is_that_of_the_grid_for_larger_models(name):
    assert abs(z_of(name)) < 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4x4 field, 5 rows", "machine"])
def test_error_bars_are_calibrated(name):
    model, _, log_cells, options = case(name)

    def one(key):
        seed = int(jax.random.randint(key, (), 0, 2**30))
        return extended_bridge(key, model, posterior_draws(log_cells, seed), **options)

    rms, mean = calibration(one, logsumexp(log_cells), 30)
    assert 0.7 < rms < 1.5
    assert abs(mean) < 4 / 30**0.5


@pytest.mark.slow
def test_a_large_lattice_by_coupling_from_the_past():
    """Log Z of 16x16 spins by Kaufman's formula."""
    size, loc, scale = 16, 0.25, 0.05

    def model(spins):
        coupling = numpyro.sample("coupling", dist.Normal(loc, scale))
        numpyro.sample("s", ebm.Ising.lattice((size, size), coupling), obs=spins)

    spins = ebm.perfect_sample(jax.random.key(0), ebm.Ising.lattice((size, size), 0.28)).value
    bonds = int((spins * jnp.roll(spins, 1, 0) + spins * jnp.roll(spins, 1, 1)).sum())
    grid = np.linspace(0.05, 0.45, 401)
    log_cells = stats.norm.logpdf(grid, loc, scale) + grid * bonds + np.log(grid[1] - grid[0])
    log_cells -= [ising_exact.log_z(size, size, coupling) for coupling in grid]
    p = np.exp(log_cells - logsumexp(log_cells))
    draws = {"coupling": np.random.default_rng(0).choice(grid, (2, 500), p=p)}
    found = extended_bridge(jax.random.key(1), model, draws, model_args=(spins,))
    assert found.ok
    assert abs(found.log_evidence - logsumexp(log_cells)) < 4 * found.std_error


@pytest.mark.slow
def test_draws_of_an_exchange_chain():
    _, rows, log_cells, options = case("4x4, 5 rows")
    mcmc = MCMC(ebm.Exchange(lattice), num_warmup=300, num_samples=3000, progress_bar=False)
    mcmc.run(jax.random.key(2), rows)
    found = extended_bridge(jax.random.key(3), mcmc, num_temperatures=options["num_temperatures"])
    assert found.ok
    assert found.diagnostics["ess"] < 1500
    assert abs(found.log_evidence - logsumexp(log_cells)) < 4 * found.std_error


# ----- every kind of model and of plate -------------------------------------------------------


GRID = np.linspace(-0.8, 0.8, 321)


def members(normalizer="guard"):
    """Fields of their own in one plate, replicates in another, one of them masked."""
    coupling = numpyro.sample("coupling", dist.Normal(0, SCALE))
    numpyro.sample("y", dist.Normal(coupling, 0.3), obs=0.2)
    field = jnp.array([-0.3, 0.0, 0.4])[:, None, None]
    model = ebm.Ising.lattice((2, 3), coupling, field, periodic=False, normalizer=normalizer)
    rows = np.random.default_rng(1).choice([-1, 1], (2, 3, 2, 3))
    mask = jnp.array([[True, True, False], [True, True, True]])
    with numpyro.plate("replicates", 2, dim=-2), numpyro.plate("members", 3, dim=-1):
        with handlers.mask(mask=mask):
            numpyro.sample("s", model, obs=rows)


def rbm(normalizer="guard"):
    scale = numpyro.sample("coupling", dist.Normal(0, SCALE))
    weights = np.random.default_rng(2).normal(size=(5, 3))
    rows = np.random.default_rng(3).choice([0, 1], (6, 5))
    model = ebm.RBM(4 * scale * weights, jnp.zeros(5), jnp.full(3, 0.5), normalizer=normalizer)
    numpyro.sample("s", model.expand([6]).to_event(1), obs=rows)


def hidden(normalizer="guard"):
    coupling = numpyro.sample("coupling", dist.Normal(0, SCALE))
    pairs = jnp.ones((6, 6)) - jnp.eye(6)
    rows = np.random.default_rng(4).choice([0, 1], (5, 4))
    with numpyro.plate("rows", 5):
        model = ebm.BoltzmannMachine(
            2 * coupling * pairs, jnp.full(6, -0.3), num_visible=4, normalizer=normalizer
        )
        numpyro.sample("s", model, obs=rows)


def two_sites(normalizer="guard"):
    coupling = numpyro.sample("coupling", dist.Normal(0, SCALE))
    rng = np.random.default_rng(5)
    for name, shape in (("first", (2, 2)), ("second", (3, 2))):
        model = ebm.Ising.lattice(shape, coupling, 0.1, periodic=False, normalizer=normalizer)
        numpyro.sample(name, model, obs=rng.choice([-1, 1], shape))


def on_grid(model):
    """Log p(y) and posterior draws of a small model, all states summed."""
    at = jax.jit(jax.vmap(lambda c: log_density(model, (), {"normalizer": "exact"}, c)[0]))
    log_cells = np.asarray(at({"coupling": jnp.asarray(GRID)}), np.float64)
    log_cells += np.log(GRID[1] - GRID[0])
    p = np.exp(log_cells - logsumexp(log_cells))
    rng = np.random.default_rng(6)
    within = rng.uniform(-0.5, 0.5, (2, 600)) * (GRID[1] - GRID[0])
    return logsumexp(log_cells), {"coupling": rng.choice(GRID, (2, 600), p=p) + within}


SMALL = {
    "members": (members, {}),
    "RBM": (rbm, {}),
    "hidden": (hidden, {}),
    "two sites": (two_sites, {}),
    "kernel": (members, {"kernel": GibbsWithGradientsStep(num_flips=4)}),
    "Student": (two_sites, {"proposal": "student_t", "num_sweeps": 2, "num_repetitions": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_models(name):
    model, options = SMALL[name]
    truth, draws = on_grid(model)
    options = {"num_temperatures": 4, "num_proposals": 4000} | options
    found = extended_bridge(jax.random.key(7), model, draws, **options)
    print(found, truth, (found.log_evidence - truth) / found.std_error)
    assert found.ok
    assert abs(found.log_evidence - truth) < 4 * found.std_error


@pytest.mark.parametrize("batch", [(), (3,), (2, 1), (2, 3)])
def test_replicates_come_first_and_members_keep_their_place(batch):
    field = jnp.zeros((*batch, 1, 1))
    value = np.arange(6).reshape(2, 3)[..., None, None] * np.ones((2, 2), int)
    found = by_replicate(value, ebm.Ising.lattice((2, 2), 0.1, field))
    assert found.shape[1:] == (*batch, 2, 2)
    member = np.broadcast_to(np.arange(max(1, np.prod(batch))).reshape(batch), (2, 3))
    for place in np.ndindex(found.shape[: 1 + len(batch)]):
        row, column = np.divmod(int(found[place][0, 0]), 3)
        here = int(np.ravel_multi_index(place[1:], batch)) if batch else 0
        assert member[row, column] == here
    assert sorted(found[..., 0, 0].ravel()) == list(range(6))  # each once


@pytest.mark.slow
@pytest.mark.parametrize("model", [members, hidden])
def test_paths_up_are_paths_down_reweighted(model):
    r"""For any g, E_up[g(v) v] Z0 / Z = E_down[g(1 / w)]."""
    target, num = ModelTarget("t", Unnormalized(model)), 20_000
    draws, betas = np.full((1, 40, 1), 0.8), np.linspace(0, 1, 4)
    paths = parameter_paths(
        "t", jax.random.key(0), model, target, draws, None, betas, num_sweeps=1, auxiliary=None
    )
    site = target.trace_at(jnp.array([0.8]))["s"]
    log_z = np.asarray(unwrap(site["fn"]).exact_log_z())
    log_z = (np.broadcast_to(log_z, paths.counts["s"].shape) * paths.counts["s"]).sum()
    at = np.full((num, 1), 0.8)
    up = paths.log_z_upward(jax.random.key(1), at) - log_z
    down = paths.log_z_downward(jax.random.key(2), at) - log_z
    assert up.std() > 0.2
    for g in (lambda v: v**0, lambda v: 1 / v, lambda v: v**-0.5, lambda v: v > 1):
        first, second = g(np.exp(up)) * np.exp(up), g(np.exp(down)) + 0.0
        error = np.hypot(first.std(), second.std()) / num**0.5
        assert abs(first.mean() - second.mean()) < 4 * error


# ----- model choice ---------------------------------------------------------------------------


def independent(rows):
    field = numpyro.sample("field", dist.Normal(0, SCALE))
    with numpyro.plate("rows", len(rows)):
        numpyro.sample("s", dist.Bernoulli(logits=field).expand([8]).to_event(1), obs=rows)


def test_bayes_factor_with_and_without_interaction():
    rows = case("machine, 5 rows")[1]
    found = {
        "with": estimate("machine, 5 rows"),
        "without": exact(independent, model_args=(rows,)),
    }
    table = compare(found)
    log_without = cells(rows, "machine")[np.argmin(np.abs(COUPLINGS))]  # the row of coupling 0
    at_zero = -np.log(SCALE * np.sqrt(2 * np.pi)) + np.log(COUPLINGS[1] - COUPLINGS[0])
    truth = logsumexp(case("machine, 5 rows")[2]) - (logsumexp(log_without) - at_zero)
    factor = found["with"].log_evidence - found["without"].log_evidence
    assert abs(factor - truth) < 4 * table["log_bayes_factor_error"].max()
    assert table.loc["with", "method"] == "extended_bridge"
    with pytest.raises(ValueError, match="same data"):
        compare(found | {"other": exact(independent, model_args=(rows[:3],))})


# ----- draws that are not exact, doubts and errors ----------------------------------------------


@pytest.mark.slow
def test_markov_chains_for_auxiliary_data_are_announced():
    model, _, log_cells, options = case("3x3, 5 rows")
    options = options | {"num_proposals": 200}
    draws = posterior_draws(log_cells, 1)
    with pytest.warns(EvidenceWarning, match=r"\['s'\].*Markov chains"):
        found = extended_bridge(
            jax.random.key(8), model, draws, auxiliary=AuxiliaryChain(4), **options
        )
    assert not found.ok
    assert not found.diagnostics["exact_draws"]


def test_too_few_temperatures_are_announced():
    assert _spread_doubts(2.0)
    assert not _spread_doubts(1.0)


def no_unknown():
    coupling = numpyro.sample("coupling", dist.Normal(0, 1))
    model = ebm.Ising.lattice((2, 2), coupling, normalizer="exact")
    numpyro.sample("s", model, obs=np.ones((2, 2), int))


def scaled():
    with handlers.scale(scale=0.5):
        two_sites()


def deep():
    coupling = numpyro.sample("coupling", dist.Normal(0, 1))
    dbm = ebm.DBM(
        [coupling * jnp.ones((3, 2)), jnp.ones((2, 2))], [jnp.zeros(3), *[jnp.zeros(2)] * 2]
    )
    numpyro.sample("s", dbm, obs=np.ones(3, int))


def many_hidden():
    coupling = numpyro.sample("coupling", dist.Normal(0, 1))
    pairs = coupling * (jnp.ones((15, 15)) - jnp.eye(15))
    model = ebm.BoltzmannMachine(pairs, jnp.zeros(15), num_visible=4)
    numpyro.sample("s", model, obs=np.ones(4, int))


DRAWS = {"coupling": np.random.default_rng(0).normal(0, 0.1, (2, 50))}
ERRORS = {
    "no draws": (two_sites, None, {}, TypeError, "expected `draws`"),
    "distribution": (ebm.Ising.lattice((2, 2), 0.1), DRAWS, {}, TypeError, "NumPyro model.*Ising"),
    "nothing unknown": (no_unknown, DRAWS, {}, ValueError, "Use ebm.evidence.bridge"),
    "scaled": (scaled, DRAWS, {}, ValueError, "no `scale` on 'first'"),
    "warp": (two_sites, DRAWS, {"proposal": "warp3"}, ValueError, "mirror images"),
    "sweeps": (deep, DRAWS, {}, ValueError, "site 's'.*time reversal.*DBM.*`kernel`"),
    "hidden": (many_hidden, DRAWS, {}, ValueError, "path.*site 's'.*11 hidden"),
    "temperatures": (two_sites, DRAWS, {"num_temperatures": 1}, ValueError, "at least 2"),
    "kernel": (two_sites, DRAWS, {"kernel": FlipOne()}, ValueError, "reversible `kernel`"),
}


@pytest.mark.parametrize(
    ("model", "draws", "options", "error", "message"),
    [pytest.param(*e, marks=[pytest.mark.slow] * (n == "hidden"), id=n) for n, e in ERRORS.items()],
)
def test_errors(model, draws, options, error, message):
    with pytest.raises(error, match=message):
        extended_bridge(jax.random.key(0), model, draws, **options)


def test_bridge_names_it():
    with pytest.raises(ebm.NormalizerError, match="ebm.evidence.extended_bridge"):
        bridge(jax.random.key(0), two_sites, DRAWS)


def test_a_pseudolikelihood_has_no_evidence():
    for estimator in (bridge, extended_bridge):
        with pytest.raises(ebm.NormalizerError, match="'first' has a pseudolikelihood"):
            estimator(jax.random.key(0), ebm.pseudolikelihood(two_sites), DRAWS)
