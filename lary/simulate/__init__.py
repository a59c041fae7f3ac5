"""Simulated robots: a small data set in the layout of the benchmark."""

from lary.simulate.episodes import VERBS
from lary.simulate.generate import simulate

__all__ = ["VERBS", "simulate"]
