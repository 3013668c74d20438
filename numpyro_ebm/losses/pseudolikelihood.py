"""Pseudolikelihood: every unit given all others."""

from __future__ import annotations

from jaxtyping import Array, Bool, Float

from numpyro_ebm.losses.conditionals import SiteLoss
from numpyro_ebm.trainable import log_conditional


class PseudoLikelihood(SiteLoss):
    r"""Negative log-pseudolikelihood of discrete units; log Z cancels.

    .. math:: -\sum_i \log p(x_i \mid x_{-i}), \qquad
        p(x_i \mid x_{-i}) = \frac{e^{-E(x)}}{\sum_s e^{-E(x_{-i}, x_i = s)}}

    in nats, summed over observations; hidden units are summed out. Its gradient is exact and needs
    no chain. The estimate of the parameters is consistent (it converges to the true ones as
    observations grow, if the model holds) but less efficient than maximum likelihood, and it is
    another one if the model does not hold. Beside priors it is a pseudo-posterior, whose spread is
    not calibrated.

    With ``num_sites`` the sum runs over as many sites drawn without replacement at each update
    (the same for all observations), times n / ``num_sites``: an unbiased estimate of loss and
    gradient. For an RBM every site costs a pass over the hidden units; pairwise models without
    hidden units give all sites at about the cost of one energy.

    Args:
        num_sites: Sites drawn at each update; ``None`` for all.
        num_particles: Draws from the guide for one estimate.
        vectorize_particles: Whether to ``vmap`` over them.

    Raises:
        ValueError: ``num_sites`` is not a positive integer; in training, it exceeds the number of
            sites, or the units are not discrete (use :class:`ScoreMatching` for real units).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI
        >>> def model(data):
        ...     coupling = numpyro.param("coupling", 0.0)
        ...     with numpyro.plate("rows", len(data)):
        ...         numpyro.sample("s", ebm.Ising.lattice((3, 3), coupling), obs=data)
        >>> data = ebm.Ising.lattice((3, 3), 0.2).sample(jax.random.key(0), (2000,))
        >>> svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.02), ebm.PseudoLikelihood())
        >>> result = svi.run(jax.random.key(0), 100, data, progress_bar=False)
        >>> bool(abs(result.params["coupling"] - 0.2) < 0.05)
        True

    References:
        Besag (1975), "Statistical Analysis of Non-Lattice Data"; Goodfellow, Bengio & Courville
        (2016), *Deep Learning*, section 18.3.
    """

    def site_terms(
        self, energies: Float[Array, "*batch q"], present: Bool[Array, "*batch q"]
    ) -> Float[Array, "*batch"]:
        """Log probability of each site given all others, in nats."""
        return log_conditional(energies, present)
