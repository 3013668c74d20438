"""Estimates of log Z, with error bars that say when not to believe them."""

from numpyro_ebm.evidence.ais import ais
from numpyro_ebm.evidence.exact import exact
from numpyro_ebm.evidence.result import Evidence, EvidenceWarning

__all__ = ["Evidence", "EvidenceWarning", "ais", "exact"]
