import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_ebm import RBM, units

W = jnp.zeros((3, 2))
NORMAL, RECTIFIED = units.Gaussian(jnp.zeros(2)), units.ReLU(jnp.zeros(2))
COUNTS = units.Poisson(jnp.zeros(2))
STRONG = jnp.array([[2.0, 0.5], [0.5, 2.0]])

BAD_MODELS = [
    (
        lambda: RBM(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(2)),
        r"`weights` of shape \(..., 3, 2\)",
    ),
    (lambda: RBM(jnp.zeros(3), jnp.zeros(3), jnp.zeros(2)), r"got `weights` \(3,\)"),
    (lambda: RBM(W, jnp.zeros(4), jnp.zeros(2)), r"`weights` \(3, 2\) \(mismatch with `visible`\)"),
    (lambda: RBM(W, jnp.zeros(3), jnp.zeros(3)), "mismatch with `hidden`"),
    (lambda: RBM(W, units.Categorical(jnp.zeros((3, 4))), jnp.zeros(2)), r"\(..., 3, 4, 2\)"),
    (lambda: RBM(jnp.zeros((4, 3, 2)), jnp.zeros((5, 3)), jnp.zeros(2)), "broadcast together"),
    (
        lambda: RBM(W.at[0, 0].set(jnp.nan), jnp.zeros(3), jnp.zeros(2)),
        "finite `weights`; got 1 NaN",
    ),
    (lambda: RBM(W, jnp.full(3, jnp.inf), jnp.zeros(2)), "finite `logits`; got 3"),
    (lambda: RBM(W, jnp.zeros(3), jnp.full(2, jnp.nan)), "RBM: expected `hidden`.*finite"),
    (lambda: RBM(W, jnp.zeros(3), jnp.zeros(2), normalizer="exat"), "one of .*'exact'.*got 'exat'"),
    (lambda: RBM(W, jnp.zeros(3), jnp.zeros(2), normalizer=jnp.zeros(3)), r"got shape \(3,\)"),
    (lambda: RBM(W, jnp.zeros(3), jnp.zeros(2), normalizer=jnp.nan), "finite `normalizer`"),
    (lambda: RBM(STRONG, NORMAL, NORMAL), "Gaussian visible and Gaussian hidden .* normalized"),
    (lambda: RBM(STRONG, NORMAL, RECTIFIED), "indefinite"),
    (lambda: RBM(STRONG, RECTIFIED, RECTIFIED), "indefinite .* is 2.5, expected below 1"),
    (lambda: RBM(0.1 * STRONG, COUNTS, NORMAL), "Poisson visible and Gaussian .* beside counts"),
    (lambda: RBM(-STRONG, NORMAL, COUNTS), "weights to Gaussian units must be 0"),
    (lambda: RBM((-STRONG).at[0, 0].set(0.1), COUNTS, RECTIFIED), "unbounded ones at most 0"),
    (lambda: RBM(STRONG, COUNTS, COUNTS), "cannot be normalized"),
    (lambda: RBM(jnp.stack([0 * STRONG, STRONG]), NORMAL, NORMAL), "cannot be normalized"),
]


@pytest.mark.parametrize(("build", "message"), BAD_MODELS)
def test_bad_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("argument", "name"), [(0, "weights"), (1, "visible"), (2, "hidden")])
@pytest.mark.parametrize("wrong", ["text", None])
def test_parameters_of_a_wrong_type(argument, name, wrong):
    arguments = [W, jnp.zeros(3), jnp.zeros(2)]
    arguments[argument] = wrong
    with pytest.raises(TypeError, match=f"RBM: expected .*`{name}`"):
        RBM(*arguments)


def test_normalizer_of_a_wrong_type():
    with pytest.raises(TypeError, match="`normalizer` to be one of .* got NoneType"):
        RBM(W, jnp.zeros(3), jnp.zeros(2), normalizer=None)


def test_counts_beside_units_that_they_do_not_excite():
    for other in (COUNTS, RECTIFIED, units.Spin(jnp.zeros(2))):
        RBM(-STRONG, COUNTS, other)
    mixed = units.Concatenate([COUNTS, NORMAL])
    blocks = jnp.zeros((4, 4)).at[:2, :2].set(-STRONG).at[2:, 2:].set(0.1 * STRONG)
    RBM(blocks, mixed, mixed)
    with pytest.raises(ValueError, match="beside counts"):
        RBM(blocks.at[0, 3].set(0.1), mixed, mixed)
    with pytest.raises(ValueError, match="indefinite"):
        RBM(blocks.at[2:, 2:].set(STRONG), mixed, mixed)


@pytest.mark.slow
def test_strong_inhibition_between_rectified_units_is_normalizable():
    assert np.isfinite(RBM(-5 * STRONG, RECTIFIED, RECTIFIED).exact_log_z())


BAD_VALUES = [
    ([0, 7, 1], r"support .*Boolean.*got \[0 1 7\] in 1 of 1 values"),
    ([0.0, np.nan, 1.0], "support"),
    ([0.5, 0.0, 1.0], "support"),
    ([[0, 1, 1], [0, 1, -1]], "in 1 of 2 values"),
    ([0, 1], r"`value` of shape \(..., 3\); got \(2,\)"),
    (0, r"`value` of shape \(..., 3\); got \(\)"),
]


@pytest.mark.parametrize("method", ["energy", "log_prob", "conditional_hidden"])
@pytest.mark.parametrize(("value", "message"), BAD_VALUES)
def test_bad_values(value, message, method):
    rbm = RBM(W, jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(ValueError, match=message):
        getattr(rbm, method)(np.asarray(value))


@pytest.mark.parametrize(("hidden", "message"), [([0, 7], "support"), ([0, 1, 0], r"\(..., 2\)")])
def test_bad_hidden_values(hidden, message):
    rbm = RBM(W, jnp.zeros(3), jnp.zeros(2))
    for call in (rbm.conditional_visible, lambda h: rbm.joint_energy(jnp.zeros(3), h)):
        with pytest.raises(ValueError, match=f"RBM: expected `hidden`.*{message}"):
            call(jnp.array(hidden))


def test_bad_values_that_cannot_raise_have_no_density():
    rbm = RBM(W, jnp.zeros(3), jnp.zeros(2), normalizer="exact")
    assert jax.jit(rbm.log_prob)(jnp.array([0, 7, 1])) == -jnp.inf
    assert jax.jit(rbm.energy)(jnp.array([0, 7, 1])) == jnp.inf


def test_value_that_does_not_fit_the_batch():
    rbm = RBM(jnp.zeros((4, 3, 2)), jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"batch shape \(4,\); got \(5, 3\)"):
        rbm.log_prob(jnp.zeros((5, 3)))
