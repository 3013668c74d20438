import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from loss_models import (
    CD,
    DATA,
    PCD,
    no_guide,
    observe,
    recorder,
    trained,
    update_with_known,
    with_chains,
    without_chains,
)
from numpyro.infer import SVI
from numpyro.primitives import mutable

from numpyro_ebm import (
    ContrastiveDivergence,
    EnergyLoss,
    PersistentContrastiveDivergence,
    persistent_chains,
)


def svi_of(loss, model):
    return SVI(model, no_guide, recorder(), loss)


def run(loss, model, data=DATA):
    svi = svi_of(loss, model)
    update_with_known(data, svi, svi.init(jax.random.key(0), data))


def run_traced(loss, model, data):
    svi = svi_of(loss, model)
    jax.jit(svi.update)(svi.init(jax.random.key(0), data), data)


INVALID = {"7": DATA.at[3, 2].set(7), "NaN": DATA.astype(float).at[3, 2].set(jnp.nan)}


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("loss", [CD, PCD], ids=["CD", "PCD"])
def test_values_outside_the_support(loss, data):
    svi = svi_of(loss, without_chains if loss is CD else with_chains)
    state = svi.init(jax.random.key(0), DATA)
    with pytest.raises(ValueError, match=r"RBM: expected `obs of site 'v'` in the support.*got \["):
        update_with_known(data, svi, state)
    assert jax.jit(svi.update)(state, data)[1] == jnp.inf


# ----- models and arguments that are wrong -------------------------------------------------


def no_plate(data):
    numpyro.sample("v", trained(), obs=data)


def not_energy_based(data):
    numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.0), 1.0), obs=1.0)


def declared_after(data):
    rbm = trained()
    observe(rbm, data)
    persistent_chains("chains", 5, rbm)


def declared_for_another(data):
    persistent_chains("chains", 5, trained())
    observe(trained(), data)


def chains_of_normal(data):
    persistent_chains("chains", 5, dist.Normal(0, 1))


def resized():
    svi = svi_of(PCD, with_chains)
    svi.update(svi.init(jax.random.key(0), DATA), DATA, num_chains=10)


def evaluate():
    svi = svi_of(PCD, with_chains)
    svi.evaluate(svi.init(jax.random.key(0), DATA), DATA)


def counts(data):
    mutable("count", {"value": 0})
    without_chains(data)


def cd(*args, **kwargs):
    return lambda: ContrastiveDivergence(*args, **kwargs)


NOT_POSITIVE = "positive integer; got"
ERRORS = {
    "no site": (lambda: run(CD, not_energy_based), "observed energy-based site.*has none"),
    "empty data": (lambda: run(CD, no_plate, DATA[:0]), "at least one observation at site 'v'"),
    "wrong width": (
        lambda: run(CD, no_plate, DATA[:, :4]),
        r"obs of site 'v'` of shape \(\.\.\., 6",
    ),
    "wrong width, jit": (lambda: run_traced(CD, no_plate, DATA[:, :4]), "of shape"),
    "no chains": (lambda: run(PCD, without_chains), "call ebm.persistent_chains"),
    "chains declared after": (lambda: run(PCD, declared_after), "expected chains for site 'v'"),
    "chains of another": (lambda: run(PCD, declared_for_another), "expected chains for site 'v'"),
    "other state": (lambda: run(PCD, counts), r"expected chains for site 'v'.*\['count'\]"),
    "other number of chains": (resized, "expected 10 chains at 'chains'.*svi.init"),
    "no chains at all": (lambda: run(PCD, lambda data: with_chains(data, 0)), NOT_POSITIVE + " 0"),
    "evaluate": (evaluate, "svi.evaluate.*ebm.evidence"),
    "particles and chains": (
        lambda: run(ContrastiveDivergence(num_particles=2), with_chains),
        "`num_particles=1` for a model with mutable sites such as 'chains'",
    ),
    "particles": (lambda: PersistentContrastiveDivergence(num_particles=2), "`num_particles=1`"),
    "no particle": (cd(num_particles=0), "`num_particles` to be a positive integer; got 0"),
    "num_steps 0": (cd(0), f"ContrastiveDivergence: expected `num_steps` .* {NOT_POSITIVE} 0"),
    "num_steps -1": (cd(-1), NOT_POSITIVE + " -1"),
    "num_steps 1.5": (cd(1.5), NOT_POSITIVE + " 1.5"),
    "PCD num_steps": (lambda: PersistentContrastiveDivergence(0), "^PersistentContrastive.*got 0"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


TYPE_ERRORS = {
    "chains of a normal": (lambda: run(PCD, chains_of_normal), "energy-based model.*got Normal"),
    "abstract": (lambda: run(EnergyLoss(), without_chains), "does not define `surrogate`"),
}


@pytest.mark.parametrize(("call", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()
