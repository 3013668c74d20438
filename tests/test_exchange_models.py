"""Exchange beside other sites of a model: covariates, replicates, hierarchies, missing units."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from intractable_models import (
    Grid,
    assert_posterior_moments,
    midpoints,
    sample,
    two_sample_z,
)
from numpyro.infer import NUTS, Gibbs
from numpyro.infer.util import log_density

import numpyro_ebm as ebm

PRIOR = dist.Normal(0, 0.4)


def exact_grid(model, names, *args, number=60, **kwargs):
    """Posterior on a grid from the model's own density with an enumerated log Z."""
    axes = [midpoints(PRIOR, number) for _ in names]
    points = jnp.stack(jnp.meshgrid(*map(jnp.asarray, axes), indexing="ij"), -1)
    points = points.reshape(-1, len(names))

    @jax.jit
    def log_joint(point):
        values = dict(zip(names, point, strict=True))
        return log_density(model, args, {**kwargs, "normalizer": "exact"}, values)[0]

    log_probs = np.asarray(jax.lax.map(log_joint, points), np.float64)
    probs = np.exp(log_probs - log_probs.max())
    return Grid(np.asarray(points, np.float64), probs / probs.sum())


SLOPE = np.linspace(-1, 1, 12).reshape(3, 4)


def autologistic(s, normalizer="guard"):
    """Covariates enter the field."""
    coupling = numpyro.sample("coupling", PRIOR)
    slope = numpyro.sample("slope", PRIOR)
    ising = ebm.Ising.lattice((3, 4), coupling, slope * SLOPE, normalizer=normalizer)
    numpyro.sample("s", ising, obs=s)


def masked_replicates(s, present, y, normalizer="guard"):
    """Replicates in a plate, some of them absent, and another likelihood."""
    coupling = numpyro.sample("coupling", PRIOR)
    bias = numpyro.sample("bias", PRIOR)
    machine = ebm.BoltzmannMachine(
        coupling * (1 - jnp.eye(4)), bias * jnp.ones(4), normalizer=normalizer
    )
    with numpyro.plate("rows", len(s)):
        numpyro.sample("s", machine.mask(present), obs=s)
    numpyro.sample("y", dist.Normal(coupling, 0.3), obs=y)


def batched(s, normalizer="guard"):
    """Each replicate with a field of its own, and a second site."""
    coupling = numpyro.sample("coupling", PRIOR)
    offset = numpyro.sample("offset", PRIOR)
    field = offset + jnp.array([-0.3, 0.0, 0.4])[:, None, None]
    with numpyro.plate("rows", 3):
        ising = ebm.Ising.lattice((2, 3), coupling, field, normalizer=normalizer)
        numpyro.sample("s", ising, obs=s[:3])
    other = ebm.Ising.lattice((2, 3), coupling, periodic=False, normalizer=normalizer)
    numpyro.sample("t", other.expand([2]).to_event(1), obs=s[3:])


def labels(s, normalizer="guard"):
    """A Potts lattice."""
    coupling = numpyro.sample("coupling", PRIOR)
    bias = numpyro.sample("bias", PRIOR)
    field = jnp.stack([bias, jnp.zeros(()), -bias])
    potts = ebm.Potts.lattice((2, 3), coupling, 3, field, normalizer=normalizer)
    numpyro.sample("s", potts, obs=s)


WEIGHTS = np.random.default_rng(2).normal(0, 1.5, (5, 3))


def machine_with_hidden_units(s, normalizer="guard"):
    """A restricted Boltzmann machine whose weights have an unknown scale."""
    scale = numpyro.sample("scale", PRIOR)
    bias = numpyro.sample("bias", PRIOR)
    rbm = ebm.RBM(scale * WEIGHTS, bias * jnp.ones(5), jnp.zeros(3), normalizer=normalizer)
    with numpyro.plate("rows", len(s)):
        numpyro.sample("s", rbm, obs=s)


def real_units(s, normalizer="guard"):
    """The same with Gaussian visible units: no pseudolikelihood to start from."""
    scale = numpyro.sample("scale", PRIOR)
    loc = numpyro.sample("loc", PRIOR)
    visible = ebm.units.Gaussian(loc * jnp.ones(5))
    rbm = ebm.RBM(scale * WEIGHTS / 2, visible, jnp.zeros(3), normalizer=normalizer)
    with numpyro.plate("rows", len(s)):
        numpyro.sample("s", rbm, obs=s)


def _spins(key, *shape):
    return 2 * jax.random.bernoulli(jax.random.key(key), 0.6, shape).astype(int) - 1


CASES = {
    "autologistic": (autologistic, ["coupling", "slope"], (_spins(0, 3, 4),)),
    "masked_replicates": (
        masked_replicates,
        ["coupling", "bias"],
        ((_spins(1, 9, 4) + 1) // 2, jnp.arange(9) % 3 > 0, 0.4),
    ),
    "batched": (batched, ["coupling", "offset"], (_spins(2, 5, 2, 3),)),
    "labels": (
        labels,
        ["coupling", "bias"],
        (jax.random.randint(jax.random.key(3), (2, 3), 0, 3),),
    ),
    "hidden": (machine_with_hidden_units, ["scale", "bias"], ((_spins(5, 8, 5) + 1) // 2,)),
    "real": (real_units, ["scale", "loc"], (jax.random.normal(jax.random.key(4), (8, 5)),)),
}


SLOW = ("autologistic", "batched", "labels", "hidden", "real")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES],
)
def test_models(name):
    model, sites, args = CASES[name]
    mcmc = sample(ebm.Exchange(model), *args)
    assert_posterior_moments(mcmc, sites, exact_grid(model, sites, *args))


@pytest.mark.slow
def test_pseudo_marginal_of_replicates():
    model, sites, args = CASES["masked_replicates"]
    mcmc = sample(ebm.PseudoMarginal(model, num_particles=3, num_bridges=2), *args)
    assert_posterior_moments(mcmc, sites, exact_grid(model, sites, *args))


# ----- in Gibbs ------------------------------------------------------------------------------


def hierarchy(s, normalizer="guard"):
    """Couplings of three groups around a common mean."""
    center = numpyro.sample("center", dist.Normal(0, 0.4))
    spread = numpyro.sample("spread", dist.LogNormal(-1.2, 0.3))
    with numpyro.plate("groups", 3):
        coupling = numpyro.sample("coupling", dist.Normal(center, spread))
        ising = ebm.Ising.lattice((2, 3), coupling[:, None], normalizer=normalizer)
        numpyro.sample("s", ising, obs=s)


@pytest.mark.slow
@pytest.mark.parametrize("jointly", [True, False])
def test_hierarchy(jointly):
    s = jnp.stack([_spins(3, 2, 3), jnp.ones((2, 3), int), _spins(4, 2, 3)])
    kernel = ebm.Exchange(hierarchy)
    if not jointly:
        kernel = Gibbs([(kernel, ["coupling"]), (NUTS(hierarchy), None)])
    chains = "vectorized" if jointly else jax.vmap
    found = sample(kernel, s, num_samples=4000, chain_method=chains)
    truth = sample(NUTS(hierarchy, target_accept_prob=0.95), s, "exact", seed=1)
    moments = []
    for mcmc in (found, truth):
        draws = mcmc.get_samples(group_by_chain=True)
        parts = [np.asarray(draws[k], np.float64) for k in ("center", "coupling")]
        moments.append(np.concatenate([parts[0][..., None], parts[1]], -1))
    mean = moments[1].mean((0, 1))
    both = [np.concatenate([m, (m - mean) ** 2], -1) for m in moments]
    assert np.all(np.abs(two_sample_z(*both)) < 4)


OBSERVED = np.array([[1, -1, 1], [1, 1, 1], [-1, 1, 1]])
MISSING = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], bool)


def partly_observed():
    coupling = numpyro.sample("coupling", PRIOR)
    field = numpyro.sample("field", PRIOR)
    numpyro.sample("s", ebm.Ising.lattice((3, 3), coupling, field))


def test_missing_units_are_imputed():
    clamp = {"s": (jnp.asarray(~MISSING), jnp.asarray(OBSERVED))}
    blocks = [
        (ebm.BlockGibbs(partly_observed, clamp=clamp), ebm.energy_sites),
        (ebm.Exchange(partly_observed), None),
    ]
    mcmc = sample(Gibbs(blocks), num_samples=12_000, chain_method=jax.vmap)
    draws = np.asarray(mcmc.get_samples()["s"])
    assert np.all(draws[:, ~MISSING] == OBSERVED[~MISSING])

    num_missing = MISSING.sum()
    fills = np.stack(np.meshgrid(*[[-1, 1]] * num_missing, indexing="ij"), -1)
    fills = fills.reshape(-1, num_missing)
    states = np.repeat(OBSERVED[None], len(fills), 0)
    states[:, MISSING] = fills

    def model(normalizer):
        coupling = numpyro.sample("coupling", PRIOR)
        field = numpyro.sample("field", PRIOR)
        ising = ebm.Ising.lattice((3, 3), coupling, field, normalizer=normalizer)
        numpyro.factor("seen", jax.scipy.special.logsumexp(ising.log_prob(states)))

    assert_posterior_moments(mcmc, ["coupling", "field"], exact_grid(model, ["coupling", "field"]))


def test_estimates_of_z_cannot_follow_other_blocks():
    def model(s):
        coupling = numpyro.sample("coupling", PRIOR)
        field = numpyro.sample("field", PRIOR)
        numpyro.sample("s", ebm.Ising.lattice((2, 3), coupling, field), obs=s)

    blocks = [(ebm.PseudoMarginal(model), ["coupling"]), (ebm.Exchange(model), None)]
    with pytest.raises(ValueError, match=r"depend on \['field'\] of other blocks"):
        sample(Gibbs(blocks), _spins(0, 2, 3), num_samples=5, num_warmup=5, num_chains=1)


# ----- what is refused -----------------------------------------------------------------------


def run(model, *args, kernel=ebm.Exchange, **options):
    return sample(kernel(model, **options), *args, num_samples=2, num_warmup=2, num_chains=1)


def frustrated(s):
    coupling = numpyro.sample("coupling", dist.Uniform(0.1, 1))
    numpyro.sample("s", ebm.Ising(-coupling * (1 - jnp.eye(30)), jnp.zeros(30)), obs=s)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda s: numpyro.sample("s", ebm.Ising.lattice((2, 3), 0.1), obs=s), "no latent|none"),
        (
            lambda s: (
                numpyro.sample("a", PRIOR),
                numpyro.sample("s", ebm.Ising.lattice((2, 3), 0.1), obs=s),
            ),
            "are fixed",
        ),
        (
            lambda s: numpyro.sample("s", ebm.Ising.lattice((2, 3), numpyro.sample("a", PRIOR))),
            "to be observed",
        ),
        (
            lambda s: numpyro.sample("s", dist.Normal(numpyro.sample("a", PRIOR), 1), obs=1.0),
            "NUTS",
        ),
        (lambda s: autologistic(jnp.ones((3, 4), int), "exact"), 'normalizer="exact"'),
    ],
)
def test_models_that_do_not_fit(model, message):
    with pytest.raises(ValueError, match=message):
        run(model, _spins(0, 2, 3))


def test_coupling_from_the_past_of_frustrated_couplings():
    method = ebm.kernels.CouplingFromThePast()
    with pytest.raises(ValueError, match="frustrated"):
        run(frustrated, _spins(0, 30), auxiliary=method)
    with pytest.raises(ValueError, match="few enough states"):
        run(frustrated, _spins(0, 30), auxiliary=ebm.kernels.ExactDraws())
    mcmc = run(frustrated, _spins(0, 30))  # by a chain
    assert not mcmc.sampler._sampler.is_exact


def test_a_known_log_z_cannot_belong_to_latent_parameters():
    with pytest.raises(ebm.NormalizerError, match="'coupling'"):
        run(lambda s: autologistic(s, jnp.asarray(3.0)), _spins(0, 3, 4))


def test_subsampled_and_scaled_sites():
    def scaled(s):
        with numpyro.handlers.scale(scale=2.0):
            autologistic(s)

    with pytest.raises(ValueError, match="no `scale`"):
        run(scaled, _spins(0, 3, 4))


def test_a_run_without_an_exact_draw_stops():
    def model(s):
        coupling = numpyro.sample("coupling", dist.Uniform(0.8, 1.0))
        numpyro.sample("s", ebm.Ising.lattice((16, 16), coupling), obs=s)

    with pytest.raises(jax.errors.JaxRuntimeError, match="has not met within"):
        run(
            model,
            jnp.ones((16, 16), int),
            auxiliary=ebm.kernels.CouplingFromThePast(max_sweeps=64),
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"proposal": "hmc"}, ValueError, "proposal"),
        ({"step_size": 0}, ValueError, "step_size"),
        ({"num_bridges": -1}, ValueError, "num_bridges"),
        ({"num_score_draws": 0}, ValueError, "num_score_draws"),
        ({"target_accept_prob": 1.0}, ValueError, "target_accept_prob"),
        ({"bridge_kernel": ebm.kernels.GibbsSweeps()}, ValueError, "reversible"),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=message):
        ebm.Exchange(autologistic, **options)


def test_methods_and_references():
    with pytest.raises(TypeError, match="auxiliary"):
        run(autologistic, _spins(0, 3, 4), auxiliary="exact")
    with pytest.raises(ValueError, match="num_steps"):
        ebm.kernels.AuxiliaryChain(1)
    with pytest.raises(ValueError, match="reference"):
        run(autologistic, _spins(0, 3, 4), kernel=ebm.PseudoMarginal, reference={"slope": 0.1})
    with pytest.raises(TypeError, match="num_particles"):
        ebm.AuxiliaryVariable(autologistic, num_particles=3)
    with pytest.raises(TypeError, match="num_steps"):
        ebm.NoisyMALA(autologistic, num_steps=3)
    with pytest.raises(TypeError, match="auxiliary_drift"):
        ebm.auxiliary_drift(3)


def test_the_same_seed_gives_the_same_chain():
    args = CASES["autologistic"][2]
    draws = [sample(ebm.Exchange(autologistic), *args, num_samples=5, num_warmup=5) for _ in "ab"]
    first, second = (mcmc.get_samples()["coupling"] for mcmc in draws)
    np.testing.assert_array_equal(first, second)


def test_a_kernel_starts_anew_with_other_data():
    """Each run starts at the mode of its own data, not at that of an earlier run."""
    kernel = ebm.Exchange(autologistic)
    centres = []
    for s in (_spins(0, 3, 4), jnp.ones((3, 4), int)):
        state = kernel.init(jax.random.key(0), 0, None, (s,), {})
        centres.append(np.asarray(state.chains["joint"].tuning.mean))
    fresh = ebm.Exchange(autologistic).init(
        jax.random.key(0), 0, None, (jnp.ones((3, 4), int),), {}
    )
    np.testing.assert_array_equal(centres[1], fresh.chains["joint"].tuning.mean)
    assert not np.allclose(centres[0], centres[1])
