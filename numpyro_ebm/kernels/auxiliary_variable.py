"""Single and multiple auxiliary variable methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpyro_ebm.kernels.pseudo_marginal import PseudoMarginal


class AuxiliaryVariable(PseudoMarginal):
    r"""Single and multiple auxiliary variable methods for sites whose log Z is unknown.

    The chain lives on :math:`(\theta, x)`, where the data-like x has the density
    :math:`f(x; \hat\theta) / Z(\hat\theta)` at a reference :math:`\hat\theta`. Proposed together
    with an exact draw :math:`x' \sim f(\cdot; \theta') / Z(\theta')`, a move is accepted with
    probability

    .. math:: \min\Big\{1, \frac{p(\theta') f(y; \theta') q(\theta \mid \theta')}
        {p(\theta) f(y; \theta) q(\theta' \mid \theta)} \cdot
        \frac{f(x'; \hat\theta)}{f(x'; \theta')} \cdot \frac{f(x; \theta)}{f(x; \hat\theta)}\Big\}

    With K bridges there are K + 1 auxiliary variables, which anneal from :math:`\theta'` to
    :math:`\hat\theta`. **Exact** where the draws are (see :class:`~numpyro_ebm.Exchange`). It is
    :class:`~numpyro_ebm.PseudoMarginal` with one particle.

    Args:
        model: As for :class:`~numpyro_ebm.Exchange`.
        num_bridges: K; 0 for a single auxiliary variable.
        **options: As for :class:`~numpyro_ebm.PseudoMarginal`, without ``num_particles``.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC
        >>> def model(s):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 0.5))
        ...     numpyro.sample("s", ebm.Ising.lattice((3, 4), coupling), obs=s)
        >>> s = ebm.Ising.lattice((3, 4), 0.2).sample(jax.random.key(0))
        >>> kernel = ebm.AuxiliaryVariable(model, num_bridges=3)
        >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), s)
        >>> mcmc.get_samples()["coupling"].shape
        (100,)

    References:
        Møller, Pettitt, Reeves & Berthelsen (2006), "An efficient Markov chain Monte Carlo method
        for distributions with intractable normalising constants", Biometrika 93; Murray,
        Ghahramani & MacKay (2006), "MCMC for doubly-intractable distributions", UAI (multiple
        auxiliary variables).
    """

    def __init__(self, model: Callable[..., Any], *, num_bridges: int = 0, **options: Any) -> None:
        if "num_particles" in options:
            raise TypeError(
                "AuxiliaryVariable: expected no `num_particles`; else use ebm.PseudoMarginal."
            )
        super().__init__(model, num_particles=1, num_bridges=num_bridges, **options)
