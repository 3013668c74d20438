"""What NumPyro's MCMC asks of a kernel: starts, fields, resuming, pickling, keys, arguments."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import run
from numpyro.infer import MCMC
from registry import Case

from numpyro_ebm import BlockGibbs

RBM = Case("Bernoulli", "Bernoulli", 800).build()
SPINS = Case("Spin", "Bernoulli", 801).build()
Y, OTHER = np.array([0.8, -0.5, 0.3]), np.array([-2.0, 2.0, -1.0])
SHORT = {"num_warmup": 0, "num_samples": 20}


def prior():
    numpyro.sample("v", RBM)


def signs(y, scale=1.0):
    v = numpyro.sample("v", RBM)
    mean = numpyro.deterministic("mean", 2 * v - 1)
    numpyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


def two_sites():
    numpyro.sample("v", RBM)
    numpyro.sample("s", SPINS)


def samples_of(mcmc, site="v"):
    return np.asarray(mcmc.get_samples(group_by_chain=True)[site])


# ----- starting values ---------------------------------------------------------------------

STARTS = np.array([[1, 0, 1], [0, 0, 1]])


def start(kernel, num_chains, init_params, *args):
    key = jax.random.key(0)
    keys = key if num_chains is None else jax.random.split(key, num_chains)
    return kernel.init(keys, 0, init_params, args, {})


@pytest.mark.slow
def test_start_at_given_values():
    one = start(BlockGibbs(prior), None, {"v": STARTS[0]})
    two = start(BlockGibbs(prior), 2, {"v": STARTS})
    np.testing.assert_array_equal(one.z["v"], STARTS[0])
    np.testing.assert_array_equal(two.z["v"], STARTS)
    np.testing.assert_allclose(two.energy, RBM.energy(STARTS), rtol=1e-6)


def test_start_one_site_of_two():
    state = start(BlockGibbs(two_sites), 2, {"s": -np.ones((2, 3), int)})
    np.testing.assert_array_equal(state.z["s"], -1)
    assert np.isin(state.z["v"], [0, 1]).all()


@pytest.mark.parametrize("num_chains", [None, 2])
@pytest.mark.parametrize(
    ("init_params", "message"),
    [
        ({"w": [1, 0, 1]}, r"`init_params` for sites among \('v',\); got 'w'"),
        ({"v": [1, 0]}, r"`init_params` of shape \((2, )?3,?\) for site 'v'; got \((2, )?2,?\)"),
        ({"v": [1, 0, 7]}, r"`init_params\['v'\]` in the support.*got \[0 1 7\]"),
        ({"v": [1, 0, 0.5]}, r"`init_params\['v'\]` in the support"),
    ],
)
def test_starting_values_are_checked(num_chains, init_params, message):
    lead = () if num_chains is None else (num_chains,)
    values = {k: np.broadcast_to(v, (*lead, len(v))) for k, v in init_params.items()}
    with pytest.raises(ValueError, match=message):
        start(BlockGibbs(prior), num_chains, values)


@pytest.mark.parametrize("chain_method", ["sequential", "vectorized"])
def test_starting_values_through_mcmc(chain_method):
    options = {"num_chains": 2, "chain_method": chain_method} | SHORT
    started = run(BlockGibbs(prior), init_params={"v": STARTS}, **options)
    assert samples_of(started).shape == (2, 20, 3)
    with pytest.raises(ValueError, match="in the support"):
        run(BlockGibbs(prior), init_params={"v": 7 * STARTS}, **options)
    with pytest.raises(ValueError, match="same leading dimension"):
        run(BlockGibbs(prior), init_params={"v": STARTS[:1]}, **options)


def test_vectorized_chains_start_apart():
    state = start(BlockGibbs(prior), 64, None)
    assert len(np.unique(state.z["v"], axis=0)) > 4


# ----- what is collected -------------------------------------------------------------------


def test_unknown_extra_field():
    with pytest.raises(ValueError, match=r"a field.*hidden.*'potential"):
        run(BlockGibbs(prior), extra_fields=("potential_energy",), **SHORT)


@pytest.mark.slow
def test_sites_can_be_left_out_and_deterministic_sites_come_along():
    mcmc = run(BlockGibbs(signs), Y, extra_fields=("~z.v", "z.v"), **SHORT)
    (mean,), (wide,) = mcmc.get_samples().values(), mcmc.get_extra_fields().values()
    np.testing.assert_array_equal(mean, 2 * wide - 1)
    assert set(np.unique(mean)) <= {-1, 1}


def test_print_summary(capsys):
    run(BlockGibbs(two_sites), num_chains=2, num_samples=50).print_summary()
    assert "v[0]" in capsys.readouterr().out


# ----- warmup, resuming, pickling ----------------------------------------------------------


def test_collect_warmup_and_run():
    mcmc = MCMC(BlockGibbs(signs), num_warmup=15, num_samples=20, progress_bar=False)
    mcmc.warmup(jax.random.key(0), Y, collect_warmup=True, extra_fields=("energy",))
    assert mcmc.get_samples()["v"].shape == (15, 3)
    assert mcmc.get_extra_fields()["energy"].shape == (15,)
    mcmc.run(mcmc.post_warmup_state.rng_key, Y)
    whole = run(BlockGibbs(signs), Y, num_warmup=15, num_samples=20)
    np.testing.assert_array_equal(mcmc.get_samples()["v"], whole.get_samples()["v"])


def resume(mcmc, *args):
    """Another stretch of the same chains; returns all samples."""
    first = samples_of(mcmc)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.last_state.rng_key, *args)
    return np.concatenate([first, samples_of(mcmc)], axis=1)


@pytest.mark.parametrize("pickled", [False, True])
def test_resuming_goes_on_where_the_chains_ended(pickled):
    options = {"num_warmup": 0, "num_chains": 2}
    mcmc = run(BlockGibbs(signs), Y, num_samples=10, **options)
    mcmc = pickle.loads(pickle.dumps(mcmc)) if pickled else mcmc
    whole = run(BlockGibbs(signs), Y, num_samples=20, **options)
    np.testing.assert_array_equal(resume(mcmc, Y), samples_of(whole))


def test_pickled_kernels_and_results():
    kernel = BlockGibbs(signs, num_sweeps=2, clamp={"v": ([True, False, False], 1)})
    mcmc = run(kernel, Y, extra_fields=("energy", "hidden"), **SHORT)
    copy = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(samples_of(copy), samples_of(mcmc))
    assert copy.get_samples()["v"].dtype == "uint8"
    assert set(copy.get_extra_fields()) == {"energy", "hidden"}
    again = run(pickle.loads(pickle.dumps(kernel)), Y, **SHORT)
    np.testing.assert_array_equal(samples_of(again), samples_of(mcmc))


def test_init_comes_before_sample():
    with pytest.raises(RuntimeError, match="call `init` before `sample`"):
        BlockGibbs(prior).sample(start(BlockGibbs(prior), None, None), (), {})


# ----- progress bar and recompilation ------------------------------------------------------


@pytest.fixture
def progress_bar(monkeypatch):
    """NumPyro turns the bar off where these are set."""
    for variable in ("CI", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(variable, raising=False)


def test_progress_bar_shows_the_energy(progress_bar, capsys):
    shown = run(BlockGibbs(signs), Y, progress_bar=True, chain_method="sequential", **SHORT)
    energy = float(shown.last_state.energy)
    assert f"energy={energy:.2f}" in capsys.readouterr().err
    assert BlockGibbs(signs).get_diagnostics_str(shown.last_state) == f"energy={energy:.2f}"
    silent = run(BlockGibbs(signs), Y, **SHORT)
    np.testing.assert_array_equal(samples_of(shown), samples_of(silent))


def test_a_second_run_compiles_nothing_of_ours(progress_bar):
    """Starting values are computed anew, but the step is traced just once.

    Without the bar NumPyro itself traces and compiles its loop, and with it the step, each run.
    """
    kernel, traced = BlockGibbs(prior), []
    step = kernel._sample_one
    kernel._sample_one = lambda *args: traced.append(0) or step(*args)
    mcmc = MCMC(kernel, progress_bar=True, chain_method="sequential", **SHORT)
    mcmc.run(jax.random.key(0))
    before = len(traced)
    mcmc.run(jax.random.key(1))
    assert before > 0
    assert len(traced) == before


# ----- keys and arguments ------------------------------------------------------------------


@pytest.mark.parametrize("num_chains", [1, 2])
def test_raw_and_typed_keys_give_the_same_chains(num_chains):
    mcmc = run(BlockGibbs(prior), num_chains=num_chains, **SHORT)
    typed = samples_of(mcmc)
    mcmc.run(jax.random.PRNGKey(0))
    np.testing.assert_array_equal(samples_of(mcmc), typed)


@pytest.mark.parametrize("jit_model_args", [False, True])
def test_arguments_can_change_between_runs(jit_model_args):
    options = {"num_chains": 2, "jit_model_args": jit_model_args} | SHORT
    mcmc = run(BlockGibbs(signs), Y, **options)
    np.testing.assert_array_equal(
        samples_of(mcmc), samples_of(run(BlockGibbs(signs), Y, **SHORT | {"num_chains": 2}))
    )
    mcmc.run(jax.random.key(0), jnp.asarray(OTHER), scale=0.1)
    other = samples_of(mcmc)
    np.testing.assert_array_equal(other[:, 5:], np.broadcast_to([0, 1, 0], (2, 15, 3)))
