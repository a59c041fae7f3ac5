"""Simulated robots: a data set of our own in the layout of the benchmark, made with MuJoCo and NumPy."""

from lary.simulate.episodes import VERBS
from lary.simulate.generate import simulate, write_sheets

__all__ = ["VERBS", "simulate", "write_sheets"]
