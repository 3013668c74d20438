"""Pictures of models, samples and evidence estimates; they need the `plots` extra.

Every function draws into `ax` if one is given, else into a new figure, and returns the figure.
A new figure does not go through `matplotlib.pyplot`: nothing needs closing and no setting
changes. A notebook displays it once `%matplotlib inline` has run or pyplot was imported;
`figure.savefig` works anywhere.
"""

from numpyro_ebm.plots.comparison import plot_bayes_factors, plot_bracket
from numpyro_ebm.plots.density import plot_density, plot_likelihood
from numpyro_ebm.plots.evidence import plot_log_weights, plot_trajectory
from numpyro_ebm.plots.images import plot_samples, plot_weights
from numpyro_ebm.plots.retrieval import plot_precision_recall

__all__ = [
    "plot_bayes_factors",
    "plot_bracket",
    "plot_density",
    "plot_likelihood",
    "plot_log_weights",
    "plot_precision_recall",
    "plot_samples",
    "plot_trajectory",
    "plot_weights",
]
