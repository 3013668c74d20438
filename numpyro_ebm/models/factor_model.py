"""Linear models with normal factors: probabilistic PCA and factor analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num
from numpyro.distributions import constraints
from numpyro.util import not_jax_tracer

from numpyro_ebm.models.factor_fit import FactorFit, check_table, em
from numpyro_ebm.models.rows import check_columns, drawn, rows_plate

Params = Mapping[str, Any]


@dataclass(frozen=True)
class FactorModel:
    """What probabilistic PCA and factor analysis have in common; they differ in the noise.

    Args:
        num_visible: d, number of columns of the data.
        num_factors: k, number of factors, fewer than d.
        init_scale: Standard deviation of the loadings at the start of a training by ``SVI``.

    Raises:
        ValueError: A size is not a positive integer, k is not less than d, or ``init_scale`` is
            negative.
    """

    num_visible: int
    num_factors: int
    init_scale: float = field(default=0.1, kw_only=True)

    shared_noise: ClassVar[bool]
    """Whether all columns have noise of one scale."""

    def __post_init__(self) -> None:
        sizes = self.num_visible, self.num_factors
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        if not whole or not 0 < self.num_factors < self.num_visible:
            raise ValueError(
                f"{self._name}: expected `num_factors` of at least 1 and less than `num_visible`, "
                f"both integers; got {self.num_factors!r} and {self.num_visible!r}."
            )
        if not self.init_scale >= 0:
            raise ValueError(
                f"{self._name}: expected `init_scale` of at least 0; got {self.init_scale!r}."
            )

    @property
    def _name(self) -> str:
        return type(self).__name__

    def model(
        self,
        data: Num[ArrayLike, "rows d"] | None = None,
        *,
        mask: Bool[ArrayLike, "rows d"] | None = None,
        num_rows: int | None = None,
        subsample_size: int | None = None,
    ) -> Array:
        """Draw, or observe, rows; the NumPyro model.

        Args:
            data: Rows; ``None`` draws them. What they are where ``mask`` is False does not matter.
            mask: True where an entry is observed; all of them by default.
            num_rows: Number of rows of the plate, by default that of ``data``. With fewer rows in
                ``data`` they count as a minibatch of so many.
            subsample_size: Rows of ``data`` to draw at each call; the others are left out.

        Returns:
            The rows.

        Raises:
            ValueError: Shapes do not fit, an observed entry is not finite, or neither ``data``
                nor ``num_rows`` is given.
        """
        if data is None and mask is not None:
            raise ValueError(f"{self._name}: expected `data` with a `mask`; got none.")
        if data is not None:
            data, mask = self._table(data, mask)
        params = self._declare()
        with rows_plate(self._name, data, num_rows, subsample_size) as rows:
            normal = dist.Normal(jnp.zeros(self.num_factors), 1).to_event(1)
            factors: Any = numpyro.sample("factors", normal)
            mean = params["loc"] + factors @ params["loadings"].T
            visible: Any = dist.Normal(mean, params["scale"])
            if mask is not None:
                visible = visible.mask(drawn(mask, rows))
            value: Any = numpyro.sample("visible", visible.to_event(1), obs=drawn(data, rows))
        return value

    def _declare(self) -> dict[str, Any]:
        shape = self.num_visible, self.num_factors

        def start(rng_key: Array) -> Array:
            return self.init_scale * jax.random.normal(rng_key, shape)

        scale = jnp.ones(() if self.shared_noise else self.num_visible)
        return {
            "loc": numpyro.param("loc", jnp.zeros(self.num_visible)),
            "loadings": numpyro.param("loadings", start),
            "scale": numpyro.param("scale", scale, constraint=constraints.positive),
        }

    # ----- given parameters ------------------------------------------------------------------

    def marginal(self, params: Params) -> dist.LowRankMultivariateNormal:
        r"""Density of a row, :math:`N(\mu, W W^T + \Psi)`: a normalized NumPyro distribution.

        Args:
            params: Parameters by name.
        """
        loc, loadings, scale = self._parsed(params)
        return dist.LowRankMultivariateNormal(loc, loadings, scale**2)

    def log_likelihood(
        self,
        params: Params,
        data: Num[ArrayLike, "rows d"],
        *,
        mask: Bool[ArrayLike, "rows d"] | None = None,
    ) -> Float[Array, " rows"]:
        """Exact log density of the observed entries of every row, in nats; factors integrated out.

        Differentiable in the parameters.

        Args:
            params: Parameters by name, such as those of :meth:`em` or a finished ``SVI`` run.
            data: Rows.
            mask: True where an entry is observed.

        Raises:
            ValueError: Shapes do not fit, or an observed entry is not finite.
        """
        mean, tril, loadings, residual, observed = self._solve(params, data, mask)
        scale = self._parsed(params)[2]
        rest = observed * (residual - jnp.matmul(mean, loadings.T, precision="highest"))
        quadratic = (rest**2).sum(-1) + (mean**2).sum(-1)
        log_det = 2 * jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum(-1)
        log_scales = (observed * (2 * jnp.log(scale) + jnp.log(2 * jnp.pi))).sum(-1)
        return -(quadratic + log_det + log_scales) / 2

    def posterior(
        self,
        params: Params,
        data: Num[ArrayLike, "rows d"],
        *,
        mask: Bool[ArrayLike, "rows d"] | None = None,
    ) -> dist.MultivariateNormal:
        r"""Exact posterior of the factors of every row.

        .. math:: z \mid x \sim N\big(M^{-1} W_o^T \Psi_o^{-1} (x_o - \mu_o),\ M^{-1}\big), \qquad
            M = I + W_o^T \Psi_o^{-1} W_o

        over the observed entries o.

        Args:
            params: Parameters by name.
            data: Rows.
            mask: True where an entry is observed.

        Returns:
            A distribution of batch shape ``(rows,)`` over vectors of k factors, with ``mean`` and
            ``covariance_matrix``.
        """
        mean, tril, *_ = self._solve(params, data, mask)
        inverse = jax.scipy.linalg.cho_solve((tril, True), jnp.broadcast_to(_eye(tril), tril.shape))
        return dist.MultivariateNormal(mean, covariance_matrix=inverse)

    def posterior_predictive(
        self,
        params: Params,
        data: Num[ArrayLike, "rows d"],
        *,
        mask: Bool[ArrayLike, "rows d"] | None = None,
    ) -> dist.LowRankMultivariateNormal:
        """Density of new rows with the factors of the given ones: of missing entries, exactly.

        Args:
            params: Parameters by name.
            data: Rows.
            mask: True where an entry is observed.
        """
        loc, loadings, scale = self._parsed(params)
        factors = self.posterior(params, data, mask=mask)
        mean = loc + jnp.matmul(factors.mean, loadings.T, precision="highest")
        return dist.LowRankMultivariateNormal(
            mean, jnp.matmul(loadings, factors.scale_tril, precision="highest"), scale**2
        )

    def impute(
        self,
        params: Params,
        data: Num[ArrayLike, "rows d"],
        mask: Bool[ArrayLike, "rows d"],
        *,
        rng_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "rows d"]:
        """Fill in missing entries with their means given the observed ones of their row.

        Args:
            params: Parameters by name.
            data: Rows.
            mask: True where an entry is observed.
            rng_key: Draws the entries of a row jointly instead, for multiple imputation.
        """
        filled = self.posterior_predictive(params, data, mask=mask)
        values = filled.mean if rng_key is None else filled.sample(rng_key)
        return jnp.where(jnp.asarray(mask), jnp.asarray(data), values)

    def em(
        self,
        data: Num[ArrayLike, "rows d"],
        *,
        mask: Bool[ArrayLike, "rows d"] | None = None,
        init_params: Params | None = None,
        num_iterations: int = 2000,
        tolerance: float = 1e-7,
    ) -> FactorFit:
        """Maximize the likelihood by expectation maximization, in float64.

        Each iteration raises the log-likelihood of the observed entries. The maximum is the global
        one for probabilistic PCA without missing data, else perhaps a local one. Loadings come out
        along principal axes, so that the posterior of the factors of a full row is diagonal.

        Args:
            data: Rows.
            mask: True where an entry is observed; entries are taken to be missing at random.
            init_params: Where to start; by default the closed form of probabilistic PCA, for
                factor analysis that of standardized columns, missing entries at their means.
            num_iterations: Largest number of iterations.
            tolerance: Gain of the mean log-likelihood of a row, in nats, at which to stop.

        Returns:
            Parameters and the log-likelihood after every iteration.

        Raises:
            ValueError: Data or starting values do not fit: an observed entry that is not finite, a
                column without observed entries or, for factor analysis, of one value; fewer
                dimensions in the data than factors.

        Warns:
            FitWarning: It has not converged, or noise has vanished in a column (a Heywood case).
        """
        table, observed = check_table(self._name, data, mask, self.num_visible)
        start = None if init_params is None else self._parsed(init_params)
        return em(
            self._name, table, observed, self.num_factors, self.shared_noise, start,
            num_iterations, tolerance,
        )  # fmt: skip

    # ----- parts -----------------------------------------------------------------------------

    def _parsed(self, params: Params) -> tuple[Array, Array, Array]:
        d, k = self.num_visible, self.num_factors
        shapes = {"loc": (d,), "loadings": (d, k), "scale": () if self.shared_noise else (d,)}
        found = {name: np.shape(params[name]) for name in shapes if name in params}
        if found != shapes:
            raise ValueError(
                f"{self._name}: expected `params` with the shapes {shapes}; got {found}."
            )
        loc, loadings, scale = (jnp.asarray(params[name]) for name in shapes)
        return loc, loadings, jnp.broadcast_to(scale, (d,))

    def _table(self, data: Any, mask: Any) -> tuple[Array, Array | None]:
        """Data, 0 where they are missing, and the mask."""
        data = check_columns(self._name, data, self.num_visible)
        if not jnp.issubdtype(data.dtype, jnp.floating):
            data = data.astype(jnp.result_type(float))
        if mask is not None:
            mask = jnp.asarray(mask)
            if mask.shape != data.shape or mask.dtype != bool:
                raise ValueError(
                    f"{self._name}: expected a boolean `mask` of the shape {data.shape} of `data`, "
                    f"True where an entry is observed; got {mask.dtype} of shape {mask.shape}."
                )
            data = jnp.where(mask, data, 0)
        finite = jnp.isfinite(data)
        if not_jax_tracer(finite) and not np.all(finite):
            raise ValueError(
                f"{self._name}: expected finite observed `data`; got {int(np.sum(~finite))} NaN or "
                "infinite entries. Mark missing ones with mask=~np.isnan(data)."
            )
        return data, mask

    def _solve(self, params: Params, data: Any, mask: Any) -> tuple[Array, ...]:
        """Posterior means, Cholesky factors of M, and what is in units of the noise."""
        loc, loadings, scale = self._parsed(params)
        data, mask = self._table(data, mask)
        ones = jnp.ones((1, self.num_visible), loadings.dtype)
        observed = ones if mask is None else mask.astype(loadings.dtype)
        loadings = loadings / scale[:, None]
        residual = observed * (data - loc) / scale
        pairs = (loadings[:, :, None] * loadings[:, None, :]).reshape(self.num_visible, -1)
        precision = jnp.matmul(observed, pairs, precision="highest")
        precision = precision.reshape(-1, self.num_factors, self.num_factors)
        tril = jnp.linalg.cholesky(precision + jnp.eye(self.num_factors, dtype=precision.dtype))
        tril = jnp.broadcast_to(tril, (len(residual), *tril.shape[1:]))
        field = jnp.matmul(residual, loadings, precision="highest")
        mean = jax.scipy.linalg.cho_solve((tril, True), field[..., None])[..., 0]
        return mean, tril, loadings, residual, observed


def _eye(matrix: Array) -> Array:
    return jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
