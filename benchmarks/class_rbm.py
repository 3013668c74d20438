"""Class RBMs of MNIST: training the conditional of the label, the joint density, and both.

    NUMPYRO_EBM_DATA=folder python benchmarks/class_rbm.py

Pixels above half intensity are on. The last 10,000 of the 60,000 training images choose the epoch;
the test images are looked at once, at that epoch. The label is classified by its exact conditional
p(y | x). Beside the errors: those published for class RBMs on MNIST by Larochelle & Bengio (2008).
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO

import numpyro_ebm as ebm

NUM_VALIDATION, NUM_CLASSES = 10_000, 10
WAYS = {
    "discriminative": ((0.0, 1.0), 1.81),
    "hybrid": ((0.01, 1.0), 1.28),
    "generative": ((1.0, 0.0), 3.39),
}
"""Weights of log p(x, y) and of log p(y | x), and the published error in per cent."""


def rbm_of(params, mean):
    """The class RBM of centred parameters."""
    visible = params["visible"], params["labels"]
    return ebm.ClassRBM.from_centered(params["weights"], visible, params["hidden"], mean, 0.5)


def model(inputs, labels, mean, num_hidden, num_chains, generative, discriminative):
    num_inputs = inputs.shape[1]
    logits = jnp.log(mean[:num_inputs]) - jnp.log1p(-mean[:num_inputs])
    shape = (num_inputs + NUM_CLASSES, num_hidden)
    params = {
        "weights": numpyro.param("weights", lambda key: 0.01 * jax.random.normal(key, shape)),
        "visible": numpyro.param("visible", logits),
        "labels": numpyro.param("labels", jnp.zeros(NUM_CLASSES)),
        "hidden": numpyro.param("hidden", jnp.zeros(num_hidden)),
    }
    rbm = rbm_of(params, mean)
    if generative:
        ebm.persistent_chains("chains", num_chains, rbm)
    with numpyro.plate("rows", len(inputs)):
        if generative:
            with handlers.scale(scale=generative):
                numpyro.sample("xy", rbm, obs=rbm.join(inputs, labels))
        if discriminative:
            numpyro.sample("y", rbm.conditional_label(inputs), obs=labels)


@jax.jit
def classify(rbm, inputs):
    return jax.lax.map(lambda row: rbm.conditional_label(row).logits.argmax(), inputs,
                       batch_size=500)  # fmt: skip


def error_of(rbm, inputs, labels):
    """Share of wrong labels, in per cent."""
    return 100 * float((classify(rbm, inputs) != labels).mean())


def load():
    """Images and labels for training, for validation, and for the test."""
    data = ebm.datasets.load("mnist_gray")
    images = [(rows > 127).astype(np.uint8) for rows in (data.train, data.test)]
    cut = len(images[0]) - NUM_VALIDATION
    parts = [
        (images[0][:cut], data.train_y[:cut]),
        (images[0][cut:], data.train_y[cut:]),
        (images[1], data.test_y),
    ]
    return [(jnp.asarray(x), jnp.asarray(y, jnp.int32)) for x, y in parts]


def train(way, options, data, valid, mean):
    """Returns the class RBM of the epoch with the lowest validation error."""
    (generative, discriminative), _ = WAYS[way]
    num_updates = options.epochs * (len(data[0]) // options.batch_size)
    optimizer = optax.adam(optax.linear_schedule(options.learning_rate, 0.0, num_updates))
    loss = ebm.PersistentContrastiveDivergence() if generative else Trace_ELBO()
    svi = SVI(model, lambda *args, **kwargs: None, optimizer, loss)
    best = {"error": np.inf}

    def keep_best(epoch, state, row):
        rbm = rbm_of(svi.get_params(state), mean)
        error = error_of(rbm, *valid)
        print(f"{way}, epoch {epoch}: validation error {error:.2f} %", flush=True)
        if error < best["error"]:
            best.update(error=error, rbm=rbm, epoch=epoch)

    ebm.fit(
        jax.random.key(options.seed),
        svi,
        data,
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        model_kwargs={
            "mean": mean,
            "num_hidden": options.hidden,
            "num_chains": options.batch_size,
            "generative": generative,
            "discriminative": discriminative,
        },
        callback=keep_best,
        progress_bar=False,
    )
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not set(options.ways) <= set(WAYS):
        parser.error(f"expected ways among {', '.join(WAYS)}; got {options.ways}")
    if "NUMPYRO_EBM_DATA" not in os.environ:
        print("class_rbm: set NUMPYRO_EBM_DATA to the folder of the data; skipped.")
        return
    data, valid, test = load()
    on = (data[0].sum(0, dtype=jnp.float32) + 0.5) / (len(data[0]) + 1)
    share = jnp.bincount(data[1], length=NUM_CLASSES) / len(data[1])
    mean, rows = jnp.concatenate([on, share]), []
    for way in options.ways:
        start = time.perf_counter()
        best = train(way, options, data, valid, mean)
        rows.append((way, best["epoch"], time.perf_counter() - start, best["error"],
                     error_of(best["rbm"], *test), WAYS[way][1]))  # fmt: skip
    print(f"{'training':15s} epoch  seconds  validation  test error  published (per cent)")
    for row in rows:
        print("{:15s} {:5d}  {:7.0f}  {:10.2f}  {:10.2f}  {:9.2f}".format(*row))


if __name__ == "__main__":
    main()
