"""Gaussian-Bernoulli RBMs with learnt variances on MNIST intensities, weighed from both sides.

    NUMPYRO_EBM_DATA=folder python benchmarks/gaussian_rbm.py

The images are averaged over 2x2 pixels to 14x14 intensities from 0 to 1, and normal noise of
standard deviation 0.1 is added once to all of them: without noise, pixels that are always black
would have an unbounded density. The last 10,000 of the 60,000 training images choose the epoch.

The weights are learnt as the change of each pixel's mean that a hidden unit makes, and divided by
the learnt variances (Liao et al. 2022); the negative phase continues chains by block Gibbs or by
Gibbs-Langevin moves. The test log-likelihood of each (RAISE from below, AIS from above) stands
beside that of a normal distribution with a full covariance matrix, in closed form.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.distributions import constraints
from numpyro.infer import SVI
from scipy.stats import multivariate_normal

import numpyro_ebm as ebm

NUM_VALIDATION, NOISE = 10_000, 0.1
KERNELS = {
    "block Gibbs": None,
    "Gibbs-Langevin": ebm.kernels.GibbsLangevinStep(0.5, num_steps=5),
}


def load():
    """Noisy 14x14 images for training, for validation and for the test."""
    data, rng = ebm.datasets.load("mnist_gray"), np.random.default_rng(0)

    def noisy(rows):
        blocks = rows.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
        return (blocks + rng.normal(0, NOISE, blocks.shape)).reshape(len(rows), -1)

    train, test = noisy(data.train), noisy(data.test)
    parts = train[:-NUM_VALIDATION], train[-NUM_VALIDATION:], test
    return [part.astype(np.float32) for part in parts]


def rbm_of(params, mean):
    """The RBM of centred parameters, its weights in units of the pixels' means."""
    visible = ebm.units.Gaussian(params["loc"], params["scale"])
    weights = params["weights"] / params["scale"][:, None] ** 2
    return ebm.RBM.from_centered(weights, visible, params["hidden"], mean, 0.5)


def model(batch, mean, deviation, num_hidden, num_chains, kernel):
    num_visible = batch.shape[1]
    rbm = rbm_of(
        {
            "weights": numpyro.param(
                "weights", lambda key: 0.01 * jax.random.normal(key, (num_visible, num_hidden))
            ),
            "loc": numpyro.param("loc", mean),
            "scale": numpyro.param("scale", deviation, constraint=constraints.positive),
            "hidden": numpyro.param("hidden", jnp.zeros(num_hidden)),
        },
        mean,
    )
    ebm.persistent_chains("chains", num_chains, rbm, kernel=kernel)
    with numpyro.plate("rows", len(batch)):
        numpyro.sample("v", rbm, obs=batch)


def train(name, options, rows, valid):
    """Returns the RBM of the epoch with the best validation likelihood."""
    mean, deviation = jnp.asarray(rows.mean(0)), jnp.asarray(rows.std(0))
    num_updates = options.epochs * (len(rows) // options.batch_size)
    schedule = optax.linear_schedule(options.learning_rate, 0.0, num_updates)
    svi = SVI(
        model,
        lambda batch, **kwargs: None,
        optax.adam(schedule),
        ebm.PersistentContrastiveDivergence(),
    )

    def report(epoch, state, row):
        found = row["validation_log_likelihood"]
        print(f"{name}, epoch {epoch}: validation {found:.1f} nats", flush=True)

    result = ebm.fit(
        jax.random.key(options.seed),
        svi,
        jnp.asarray(rows),
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        validation=jnp.asarray(valid),
        model_kwargs={
            "mean": mean,
            "deviation": deviation,
            "num_hidden": options.hidden,
            "num_chains": options.batch_size,
            "kernel": KERNELS[name],
        },
        track=ebm.evidence.LogZTracker(base=rows, num_particles=100),
        early_stopping=ebm.EarlyStopping(patience=options.epochs),
        progress_bar=False,
        callback=report,
    )
    return rbm_of(result.params, mean)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["block Gibbs"], help=", ".join(KERNELS))
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not set(options.names) <= set(KERNELS):
        parser.error(f"expected names among {', '.join(KERNELS)}; got {options.names}")
    if "NUMPYRO_EBM_DATA" not in os.environ:
        print("gaussian_rbm: set NUMPYRO_EBM_DATA to the folder of the data; skipped.")
        return
    rows, valid, test = load()
    normal = multivariate_normal(rows.mean(0), np.cov(rows.T))
    print(f"normal, full covariance: test log-likelihood {normal.logpdf(test).mean():.2f} nats")
    for name in options.names:
        start = time.perf_counter()
        rbm = train(name, options, rows, valid)
        trained = time.perf_counter()

        found = ebm.evidence.log_likelihood(
            jax.random.key(options.seed + 1), rbm, test, base=rows,
            num_temperatures=options.temperatures, num_rows=100, num_chains=5,
        ).diagnostics  # fmt: skip
        scale = np.asarray(rbm.visible_units.scale)
        print(
            f"{name}, {options.hidden} hidden units, trained in {trained - start:.0f} s, weighed "
            f"in {time.perf_counter() - trained:.0f} s: RAISE {found['lower']:.2f} +- "
            f"{found['lower_std_error']:.2f}, AIS {found['upper']:.2f} +- "
            f"{found['upper_std_error']:.2f} nats; learnt standard deviations "
            f"{scale.min():.3f} to {scale.max():.3f} (the noise has {NOISE})",
            flush=True,
        )


if __name__ == "__main__":
    main()
