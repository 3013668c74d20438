"""NADE and MADE trained by maximum likelihood on real data, their exact test log-likelihood.

    NUMPYRO_EBM_DATA=folder python benchmarks/train_autoregressive.py adult mushrooms dna

For each data set every model listed below is trained by `SVI` with `Trace_ELBO` until the
log-likelihood of the validation rows stops rising; the model that is best on them is the one
weighed on the test rows. The curves of training and validation are written to
`build/train_autoregressive/<data set>_<model>.csv`, the models beside them as `.safetensors`, and
an interrupted run goes on from its `.checkpoint`.

On two quiet cores the three small sets take about three minutes together; `mnist_made` takes about
10 and `mnist_nade` about 35.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI, Trace_ELBO

import numpyro_ebm as ebm


class Settings(NamedTuple):
    """One model and how it is trained."""

    model: str
    hidden_sizes: tuple[int, ...]
    num_epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float


class Task(NamedTuple):
    """One data set, with the models to choose from and the published figure in nats."""

    dataset: str
    candidates: tuple[Settings, ...]
    published: str


TASKS = {
    "adult": Task(
        "nade_adult",
        (
            Settings("made", (500,), 100, 1e-3, 50, 0.1),
            Settings("nade", (200,), 100, 1e-3, 50, 0.1),
        ),
        "NADE -13.19 (2011), MADE -13.12 (2015)",
    ),
    "mushrooms": Task(
        "nade_mushrooms",
        (
            Settings("made", (500,), 200, 1e-3, 50, 0.1),
            Settings("nade", (200,), 200, 1e-3, 50, 0.1),
        ),
        "NADE -9.81 (2011), MADE -9.68 (2015)",
    ),
    "dna": Task(
        "nade_dna",
        (
            Settings("made", (500,), 100, 1e-3, 50, 0.1),
            Settings("nade", (200,), 100, 1e-3, 50, 0.1),
        ),
        "NADE -84.81 (2011), MADE -83.63 (2015)",
    ),
    "mnist_made": Task(
        "mnist_fixed_binarized",
        (Settings("made", (3000,), 30, 1e-3, 100, 0.3),),
        "MADE -88.40 (2015, 8000 hidden units)",
    ),
    "mnist_nade": Task(
        "mnist_fixed_binarized",
        (Settings("nade", (500,), 40, 2e-3, 100, 0.01),),
        "NADE -88.86 (2011)",
    ),
}
MODELS = {"nade": ebm.NADE, "made": ebm.MADE}


def initial(settings, rows, rng_key):
    """Parameters to start from."""
    hidden = settings.hidden_sizes[0] if settings.model == "nade" else settings.hidden_sizes
    mean = jnp.asarray(rows.mean(0), jnp.float32)
    return MODELS[settings.model].init_params(rng_key, rows.shape[1], hidden, mean=mean)


def network(batch, initial, name):
    params = numpyro.param("net", initial)
    with numpyro.plate("rows", len(batch)):
        numpyro.sample("x", MODELS[name](**params), obs=batch)


def optimizer(settings, num_rows):
    """Adam with decoupled weight decay, its rate falling linearly to zero."""
    num_updates = settings.num_epochs * (num_rows // settings.batch_size)
    schedule = optax.linear_schedule(settings.learning_rate, 0.0, num_updates)
    matrices = partial(jax.tree.map, lambda x: x.ndim > 1)
    return optax.adamw(schedule, weight_decay=settings.weight_decay, mask=matrices)


def log_likelihoods(distribution, rows):
    """Exact log-likelihood of every row in nats."""
    log_prob = jax.jit(lambda distribution, rows: distribution.log_prob(rows))
    parts = np.array_split(rows, -(-len(rows) // 1000))
    return np.concatenate([np.asarray(log_prob(distribution, part), np.float64) for part in parts])


def train(label, settings, data, options):
    """Train one model; returns it with its mean log-likelihood on the validation rows."""
    start = initial(settings, data.train, jax.random.key(options.seed))
    svi = SVI(
        network,
        lambda batch, **kwargs: None,
        optimizer(settings, len(data.train)),
        Trace_ELBO(),
    )

    def show(epoch, state, row):
        nats = -row["validation_loss"] / settings.batch_size
        loss = -row["loss"] / settings.batch_size
        print(f"{label} {epoch:4d} {row['seconds']:7.0f} s {loss:9.3f} {nats:9.3f}", flush=True)

    result = ebm.fit(
        jax.random.key(options.seed + 1),
        svi,
        jnp.asarray(data.train, jnp.uint8),
        num_epochs=settings.num_epochs,
        batch_size=settings.batch_size,
        validation=jnp.asarray(data.valid, jnp.uint8),
        model_kwargs={"initial": start, "name": settings.model},
        early_stopping=ebm.EarlyStopping(patience=10, monitor="validation_loss"),
        checkpoint=options.output / f"{label}.checkpoint",
        callback=show if options.verbose else None,
        progress_bar=False,
    )
    result.history.to_csv(options.output / f"{label}.csv", index=False)
    distribution = MODELS[settings.model](**result.params["net"])
    ebm.checkpoint.save(options.output / f"{label}.safetensors", distribution)
    return distribution, log_likelihoods(distribution, data.valid).mean(), result


def run(name, task, options):
    data = ebm.datasets.load(task.dataset)
    trained = []
    for index, settings in enumerate(task.candidates):
        if options.epochs:
            settings = settings._replace(num_epochs=options.epochs)
        label = f"{name}_{settings.model}_{index}"
        distribution, valid, result = train(label, settings, data, options)
        trained.append((valid, settings, distribution))
        print(
            f"{name:10s} {settings.model} {settings.hidden_sizes} decay "
            f"{settings.weight_decay:g}: epoch {result.epoch} of {len(result.history)}, "
            f"{result.history['seconds'].iloc[-1]:.0f} s; validation {valid:.3f} nats",
            flush=True,
        )
    valid, settings, distribution = max(trained, key=lambda entry: entry[0])
    test = log_likelihoods(distribution, data.test)
    error = test.std(ddof=1) / np.sqrt(len(test))
    print(
        f"{name:10s} {settings.model} {settings.hidden_sizes}, best on validation: test "
        f"log-likelihood {test.mean():.3f} +- {error:.3f} nats over {len(test)} rows; published "
        f"{task.published}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["adult", "mushrooms", "dna"]
    parser.add_argument("names", nargs="*", default=names, help=", ".join(TASKS))
    parser.add_argument("--epochs", type=int, help="instead of the usual number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every epoch")
    parser.add_argument("--output", type=Path, default=Path("build/train_autoregressive"))
    options = parser.parse_args()
    if not set(options.names) <= set(TASKS):
        parser.error(f"expected names among {', '.join(TASKS)}; got {options.names}")
    if "NUMPYRO_EBM_DATA" not in os.environ:
        print("train_autoregressive: set NUMPYRO_EBM_DATA to the folder of the data; skipped.")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        run(name, TASKS[name], options)


if __name__ == "__main__":
    main()
