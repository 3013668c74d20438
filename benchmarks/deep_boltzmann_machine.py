"""A deep Boltzmann machine trained on binarized MNIST, and its bound on the likelihood.

    NUMPYRO_EBM_DATA=folder python benchmarks/deep_boltzmann_machine.py

Two hidden layers of 500 units. Each is first trained as an RBM (the visible units twice in the
bottom one, the hidden units twice in the top one), then both together by persistent chains against
a mean-field positive phase, in centered parameters. Printed is the variational lower bound of the
test log-likelihood, with the standard error of log Z (annealed importance sampling), after
pretraining and in the end, beside the published bound of a machine of 500 and 1000 units that was
trained for much longer.
"""

import argparse
import os
import time
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import optax
from numpyro.infer import SVI

import numpyro_ebm as ebm

PUBLISHED = "-84.6 (500-1000 units, Salakhutdinov & Hinton 2009)"


def no_latents(batch, **kwargs):
    """Guide of a model without latent sites."""


def schedule(rate, num_epochs, num_rows, batch_size):
    """Step size per row, constant in the first half and then falling to zero."""
    num_updates = num_epochs * (num_rows // batch_size)
    rate /= batch_size
    half = num_updates // 2
    falling = optax.linear_schedule(rate, 0.0, num_updates - half)
    return optax.join_schedules([optax.constant_schedule(rate), falling], [half])


def printed(stage, start):
    """Callback of a training run that prints the loss and the time after each epoch."""

    def callback(epoch, state, row):
        seconds = time.perf_counter() - start
        print(f"{stage}: epoch {epoch}, loss {row['loss']:.1f}, {seconds:.0f} s", flush=True)

    return callback


# ----- one layer at a time -------------------------------------------------------------------


def layer_of(params, is_bottom):
    return ebm.DBM.pretraining_rbm(
        *(params[name] for name in ("weights", "below", "above")),
        is_bottom=is_bottom,
        is_top=not is_bottom,
    )


def layer_model(batch, lower, below, num_hidden, num_chains):
    """The RBM of one layer; ``lower`` is the trained one below it, if there is one."""
    weights = partial(jax.random.normal, shape=(len(below), num_hidden))
    params = {
        "weights": numpyro.param("weights", lambda key: 0.01 * weights(key)),
        "below": numpyro.param("below", below),
        "above": numpyro.param("above", jnp.zeros(num_hidden)),
    }
    value = jnp.concatenate([batch, batch], -1)
    if lower is not None:
        value = layer_of(lower, True).conditional_hidden(value).sample(numpyro.prng_key())
    rbm = layer_of(params, lower is None)
    ebm.persistent_chains("chains", num_chains, rbm)
    with numpyro.plate("rows", len(batch)):
        numpyro.sample("value", rbm, obs=value)


def pretrain(options, train, mean):
    """Parameters of the RBMs of both layers."""
    bottom, stages = None, (("bottom", jnp.log(mean / (1 - mean))), ("top", jnp.zeros(500)))
    layers = []
    for number, (stage, below) in enumerate(stages):
        rate = schedule(0.05, options.pretraining_epochs, len(train), options.batch_size)
        loss = ebm.PersistentContrastiveDivergence(gradient="centered")
        result = ebm.fit(
            jax.random.key(options.seed + number),
            SVI(layer_model, no_latents, optax.sgd(rate), loss),
            train,
            num_epochs=options.pretraining_epochs,
            batch_size=options.batch_size,
            model_kwargs={
                "lower": bottom,
                "below": below,
                "num_hidden": 500,
                "num_chains": options.num_chains,
            },
            callback=printed(stage, time.perf_counter()),
            progress_bar=False,
        )
        bottom = result.params
        layers.append(layer_of(result.params, number == 0))
    return ebm.DBM.from_pretrained(layers)


# ----- both layers together --------------------------------------------------------------------


def joint_model(batch, weights, biases, offsets, num_chains):
    names = [f"weights_{k}" for k in (1, 2)], [f"biases_{k}" for k in (0, 1, 2)]
    dbm = ebm.DBM.from_centered(
        [numpyro.param(name, value) for name, value in zip(names[0], weights, strict=True)],
        [numpyro.param(name, value) for name, value in zip(names[1], biases, strict=True)],
        offsets,
    )
    ebm.persistent_chains("chains", num_chains, dbm)
    with numpyro.plate("rows", len(batch)):
        numpyro.sample("v", dbm, obs=batch)


def train_jointly(options, dbm, train, mean):
    found = dbm.mean_field(train[:2000])
    offsets = (mean, *(layer.mean(0) for layer in found.means))
    centered = ebm.DBM.from_centered(dbm.weights, dbm.units, [-offset for offset in offsets])
    model_kwargs = {
        "weights": dbm.weights,
        "biases": tuple(unit.logits for unit in centered.units),
        "offsets": offsets,
        "num_chains": options.num_chains,
    }
    rate = schedule(options.learning_rate, options.epochs, len(train), options.batch_size)
    loss = ebm.PersistentContrastiveDivergence(
        options.num_steps, positive="mean_field", num_positive_steps=options.num_positive_steps
    )
    result = ebm.fit(
        jax.random.key(options.seed + 2),
        SVI(joint_model, no_latents, optax.sgd(rate), loss),
        train,
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        model_kwargs=model_kwargs,
        callback=printed("joint", time.perf_counter()),
        progress_bar=False,
    )
    params = result.params
    weights = [params[f"weights_{k}"] for k in (1, 2)]
    return ebm.DBM.from_centered(weights, [params[f"biases_{k}"] for k in (0, 1, 2)], offsets)


# ----- the bound ---------------------------------------------------------------------------------


def weigh(options, name, dbm, data, start):
    """Print log Z and the bound on test data."""
    keys = jax.random.split(jax.random.key(options.seed + 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ebm.evidence.EvidenceWarning)
        log_z = ebm.evidence.ais(
            keys[0], dbm, base=data.train, num_temperatures=options.num_temperatures
        )
        test = jnp.asarray(data.test[: options.num_test])
        bound = ebm.evidence.variational_bound(keys[1], dbm, test, log_z=log_z, num_iterations=50)
    print(
        f"{name:12s} {time.perf_counter() - start:6.0f} s  log Z {log_z.log_evidence:8.2f} +- "
        f"{log_z.std_error:.2f} (ESS {log_z.diagnostics['ess']:.0f})  bound on {len(test)} test "
        f"rows {bound.log_evidence:8.2f} +- {bound.std_error:.2f} nats",
        flush=True,
    )
    for warning in caught:
        print(f"    {warning.message}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretraining-epochs", type=int, default=10, help="for each layer")
    parser.add_argument("--epochs", type=int, default=30, help="of both layers together")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--num-chains", type=int, default=200)
    parser.add_argument("--num-steps", type=int, default=5, help="sweeps of the chains an update")
    parser.add_argument("--num-positive-steps", type=int, default=5, help="mean-field iterations")
    parser.add_argument("--learning-rate", type=float, default=0.005, help="of both layers")
    parser.add_argument("--num-temperatures", type=int, default=15_000)
    parser.add_argument("--num-rows", type=int, help="rows of training data, all by default")
    parser.add_argument("--num-test", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/deep_boltzmann_machine"))
    options = parser.parse_args()
    if "NUMPYRO_EBM_DATA" not in os.environ:
        print("deep_boltzmann_machine: set NUMPYRO_EBM_DATA to the folder of the data; skipped.")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    data = ebm.datasets.load("mnist_fixed_binarized")
    train = jnp.asarray(data.train[: options.num_rows])
    mean = (train.sum(0) + 0.5) / (len(train) + 1.0)
    start = time.perf_counter()
    dbm = pretrain(options, train, mean)
    weigh(options, "pretrained", dbm, data, start)
    dbm = train_jointly(options, dbm, train, mean)
    ebm.checkpoint.save(options.output / "dbm.safetensors", dbm)
    weigh(options, "joint", dbm, data, start)
    print(f"published    {PUBLISHED}")


if __name__ == "__main__":
    main()
