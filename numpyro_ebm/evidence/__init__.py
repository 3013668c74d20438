"""Estimates of log Z, with error bars that say when not to believe them."""

from numpyro_ebm.evidence.ais import ais
from numpyro_ebm.evidence.bracket import Bracket, bracket
from numpyro_ebm.evidence.bridge import bridge
from numpyro_ebm.evidence.compare import compare
from numpyro_ebm.evidence.cross_check import CrossCheck, cross_check
from numpyro_ebm.evidence.exact import exact
from numpyro_ebm.evidence.extended_bridge import extended_bridge
from numpyro_ebm.evidence.importance import importance
from numpyro_ebm.evidence.linked import linked
from numpyro_ebm.evidence.log_likelihood import log_likelihood
from numpyro_ebm.evidence.result import Evidence, EvidenceWarning
from numpyro_ebm.evidence.reverse import reverse_ais
from numpyro_ebm.evidence.savage_dickey import savage_dickey
from numpyro_ebm.evidence.smc import smc
from numpyro_ebm.evidence.tracking import LogZTracker
from numpyro_ebm.evidence.variational import variational_bound

__all__ = [
    "Bracket",
    "CrossCheck",
    "Evidence",
    "EvidenceWarning",
    "LogZTracker",
    "ais",
    "bracket",
    "bridge",
    "compare",
    "cross_check",
    "exact",
    "extended_bridge",
    "importance",
    "linked",
    "log_likelihood",
    "reverse_ais",
    "savage_dickey",
    "smc",
    "variational_bound",
]
