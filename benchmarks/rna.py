"""A Potts RBM of aligned RNA sequences (Rfam family RF00379), weighed from both sides.

    NUMPYRO_EBM_DATA=folder python benchmarks/rna.py

The split: of the 3,827 sequences (136 sites, 5 letters) the 3,646 distinct ones, shuffled by the
generator `numpy.random.default_rng(0)`: the first 70 % for training, 10 % for validation, 20 % held
out, so that no sequence is in two parts. Sequences of a family are related: the last line repeats
the held-out likelihood for those that differ from every training sequence in at least a fifth of
their sites.

The model has Categorical visible and Bernoulli hidden units in centred form and is trained by
persistent contrastive divergence with weight decay; the epoch is chosen by the validation
likelihood. Likelihoods are per site, in nats: RAISE from below, AIS from above.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI

import numpyro_ebm as ebm

NUM_LETTERS = 5
SHARES = (0.7, 0.8)
FAR = 0.2
"""Share of sites in which a sequence differs from all training sequences to count as far."""


def split(rows):
    """Distinct sequences for training, for validation, and held out."""
    distinct = np.unique(rows, axis=0)
    distinct = distinct[np.random.default_rng(0).permutation(len(distinct))]
    return np.split(distinct, [int(share * len(distinct)) for share in SHARES])


def frequencies(rows):
    """Share of each letter at each site, with half a sequence of each added."""
    counts = np.eye(NUM_LETTERS)[rows].sum(0)
    return (counts + 0.5) / (len(rows) + 0.5 * NUM_LETTERS)


def rbm_of(params, probs):
    return ebm.RBM.from_centered(
        params["weights"], ebm.units.Categorical(params["visible"]), params["hidden"], probs, 0.5
    )


def model(batch, probs, num_hidden, num_chains):
    def start(key):
        return 0.01 * jax.random.normal(key, (*probs.shape, num_hidden))

    rbm = rbm_of(
        {
            "weights": numpyro.param("weights", start),
            "visible": numpyro.param("visible", jnp.log(probs)),
            "hidden": numpyro.param("hidden", jnp.zeros(num_hidden)),
        },
        probs,
    )
    ebm.persistent_chains("chains", num_chains, rbm)
    with numpyro.plate("rows", len(batch)):
        numpyro.sample("v", rbm, obs=batch)


def train(options, rows, valid, probs):
    """Returns the RBM of the epoch with the best validation likelihood, and its history."""
    rate = options.learning_rate / options.batch_size
    num_updates = options.epochs * (len(rows) // options.batch_size)
    decay = optax.add_decayed_weights(
        options.weight_decay * options.batch_size,
        mask={"weights": True, "visible": False, "hidden": False},
    )
    optimizer = optax.chain(decay, optax.sgd(optax.linear_schedule(rate, 0.0, num_updates)))
    loss = ebm.PersistentContrastiveDivergence(options.num_steps)
    result = ebm.fit(
        jax.random.key(options.seed),
        SVI(model, lambda batch, **kwargs: None, optimizer, loss),
        jnp.asarray(rows),
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        validation=jnp.asarray(valid),
        model_kwargs={"probs": probs, "num_hidden": options.hidden, "num_chains": options.chains},
        track=ebm.evidence.LogZTracker(base=rows, num_particles=200),
        early_stopping=ebm.EarlyStopping(patience=options.epochs),
        progress_bar=False,
        callback=report,
    )
    return rbm_of(result.params, probs), result


def report(epoch, state, row):
    if epoch % 10 == 0:
        per_site = row["validation_log_likelihood"] / 136
        print(f"epoch {epoch}: validation {per_site:.4f} nats per site", flush=True)


def distances(rows, others):
    """Share of sites in which each row differs from the nearest of the others."""
    return np.array([(others != row).mean(1).min() for row in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--chains", type=int, default=500)
    parser.add_argument("--num-steps", type=int, default=5)
    parser.add_argument("--temperatures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "NUMPYRO_EBM_DATA" not in os.environ:
        print("rna: set NUMPYRO_EBM_DATA to the folder of the data; skipped.")
        return
    rows, valid, test = split(ebm.datasets.load("rna_RF00379").train)
    probs = frequencies(rows)
    num_sites = test.shape[1]
    independent = np.log(probs)[np.arange(num_sites), test].mean(1)
    start = time.perf_counter()
    rbm, result = train(options, rows, valid, jnp.asarray(probs, jnp.float32))
    trained = time.perf_counter()
    found = ebm.evidence.log_likelihood(
        jax.random.key(options.seed + 1), rbm, test, base=rows,
        num_temperatures=options.temperatures, num_rows=200, num_chains=5,
    ).diagnostics  # fmt: skip
    low, high = (
        (found[side] + sign * 2 * found[f"{side}_std_error"]) / num_sites
        for side, sign in (("lower", -1), ("upper", 1))
    )
    is_far = distances(test, rows) >= FAR
    energy = np.asarray(rbm.energy(jnp.asarray(test[is_far])), np.float64).mean()
    print(
        f"{len(rows)} training, {len(valid)} validation, {len(test)} held-out sequences; "
        f"{options.hidden} hidden units, epoch {result.epoch} of {options.epochs}, trained in "
        f"{trained - start:.0f} s, weighed in {time.perf_counter() - trained:.0f} s\n"
        f"held-out log-likelihood, nats per site: RAISE {found['lower'] / num_sites:.4f} +- "
        f"{found['lower_std_error'] / num_sites:.4f}, AIS {found['upper'] / num_sites:.4f} +- "
        f"{found['upper_std_error'] / num_sites:.4f}, two-sided {low:.4f} to {high:.4f}\n"
        f"independent sites {independent.mean():.4f}; the {is_far.sum()} sequences far from all "
        f"training sequences {(-energy - found['log_z']) / num_sites:.4f} (AIS), independent sites "
        f"{independent[is_far].mean():.4f}"
    )


if __name__ == "__main__":
    main()
