"""Binary data sets to learn and test on, and published models of them.

`load_digits` and `bars_and_stripes` need no files. `load`, `load_arrays` and `load_rbm` read the
directory named by the environment variable `NUMPYRO_EBM_DATA`; `available` lists what is there.
`bouncing_balls` makes films; `two_moons`, `eight_gaussians` and `rings` are densities in the plane.
"""

from numpyro_ebm.datasets.dataset import Dataset, independent_bernoulli_log_likelihood
from numpyro_ebm.datasets.generated import bars_and_stripes, load_digits
from numpyro_ebm.datasets.motion import bouncing_balls
from numpyro_ebm.datasets.plane import eight_gaussians, rings, two_moons
from numpyro_ebm.datasets.stored import available, load, load_arrays, load_rbm

__all__ = [
    "Dataset",
    "available",
    "bars_and_stripes",
    "bouncing_balls",
    "eight_gaussians",
    "independent_bernoulli_log_likelihood",
    "load",
    "load_arrays",
    "load_digits",
    "load_rbm",
    "rings",
    "two_moons",
]
