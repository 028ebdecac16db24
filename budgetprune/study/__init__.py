"""Studies: the same training under several settings and seeds, and what the settings are worth."""

from .summary import Cell, differences, summarise
from .trials import Trial, one_at_a_time, run_trials, trials_of

__all__ = ["Cell", "Trial", "differences", "one_at_a_time", "run_trials", "summarise", "trials_of"]
