"""Probabilistic PCA and factor analysis."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Num

from numpyro_ebm.models.factor_fit import check_table, closed_form
from numpyro_ebm.models.factor_model import FactorModel


@jax.tree_util.register_static
@dataclass(frozen=True)
class PPCA(FactorModel):
    r"""Probabilistic principal component analysis.

    .. math:: z \sim N(0, I_k), \qquad x \mid z \sim N(\mu + W z,\ \sigma^2 I_d), \qquad
        x \sim N(\mu,\ W W^T + \sigma^2 I_d)

    ``model`` is a NumPyro model, for ``SVI``, ``MCMC`` and ``Predictive``: sites ``factors`` and
    ``visible`` in the plate ``rows``, parameters ``loc`` (mu), ``loadings`` (W, d by k) and
    ``scale`` (sigma). ``numpyro.handlers.lift(ppca.model, prior={"loadings": ...})`` gives
    parameters priors. Likelihood, posterior of the factors and maximum-likelihood parameters are
    exact; W is known up to a rotation of the factors.

    Args:
        num_visible: d, number of columns of the data.
        num_factors: k, number of factors, fewer than d.
        init_scale: Standard deviation of the loadings at the start of a training by ``SVI``.

    Raises:
        ValueError: A size is not a positive integer, k is not less than d, or ``init_scale`` is
            negative.

    Example:
        >>> import jax, numpy as np, numpyro_ebm as ebm
        >>> data = np.random.default_rng(0).normal(size=(200, 2)) @ np.ones((2, 5)) + np.eye(5)[0]
        >>> data += np.random.default_rng(1).normal(size=data.shape)
        >>> ppca = ebm.models.PPCA(5, 1)
        >>> params = ppca.maximum_likelihood(data)
        >>> ppca.log_likelihood(params, data).shape, ppca.posterior(params, data).mean.shape
        ((200,), (200, 1))
        >>> mask = np.random.default_rng(2).random(data.shape) < 0.8  # True where observed
        >>> fit = ppca.em(data, mask=mask)
        >>> ppca.impute(fit.params, data, mask).shape
        (200, 5)

    References:
        Tipping & Bishop (1999), "Probabilistic Principal Component Analysis", Journal of the Royal
        Statistical Society B 61, section 3.
    """

    shared_noise = True

    def maximum_likelihood(self, data: Num[ArrayLike, "rows d"]) -> dict[str, Array]:
        r"""Maximum-likelihood parameters in closed form.

        .. math:: \sigma^2 = \frac{1}{d - k} \sum_{j > k} \lambda_j, \qquad
            W = U_k (\Lambda_k - \sigma^2 I)^{1/2}

        with the eigenvalues and eigenvectors of the covariance of the data. Computed in float64.

        Args:
            data: Rows, all entries observed; :meth:`em` takes a mask.

        Raises:
            ValueError: Data do not fit, or have no more dimensions than factors.

        References:
            Tipping & Bishop (1999), section 3.2.
        """
        table, _ = check_table(self._name, data, None, self.num_visible)
        found = closed_form(self._name, table, self.num_factors)
        return {name: jnp.asarray(value, jnp.result_type(float)) for name, value in found.items()}


@jax.tree_util.register_static
@dataclass(frozen=True)
class FactorAnalysis(FactorModel):
    r"""Factor analysis: probabilistic PCA whose noise has its own scale in every column.

    .. math:: z \sim N(0, I_k), \qquad x \mid z \sim N(\mu + W z,\ \Psi), \qquad
        x \sim N(\mu,\ W W^T + \Psi), \qquad \Psi = \mathrm{diag}(\psi)

    ``model`` is a NumPyro model as that of :class:`PPCA`, with ``scale`` (the square roots of psi)
    of shape ``(d,)``. Likelihood and posterior of the factors are exact; maximum-likelihood
    parameters are found by expectation maximization (:meth:`em`), which scales with the columns.

    Args:
        num_visible: d, number of columns of the data.
        num_factors: k, number of factors, fewer than d.
        init_scale: Standard deviation of the loadings at the start of a training by ``SVI``.

    Raises:
        ValueError: A size is not a positive integer, k is not less than d, or ``init_scale`` is
            negative.

    Example:
        >>> import numpy as np, numpyro_ebm as ebm
        >>> rng = np.random.default_rng(0)
        >>> data = rng.normal(size=(300, 1)) * np.arange(1, 6) + rng.normal(size=(300, 5))
        >>> fa = ebm.models.FactorAnalysis(5, 1)
        >>> fit = fa.em(data)
        >>> bool((np.diff(fit.log_likelihood) > -1e-9).all()), fit.params["scale"].shape
        (True, (5,))

    References:
        Rubin & Thayer (1982), "EM Algorithms for ML Factor Analysis", Psychometrika 47; Bishop
        (2006), *Pattern Recognition and Machine Learning*, section 12.2.4.
    """

    shared_noise = False
