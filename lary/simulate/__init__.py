"""Simulated robots: a data set of our own in the layout of the benchmark, made with MuJoCo and NumPy."""

from lary.simulate.generate import simulate
from lary.simulate.plan import VERBS
from lary.simulate.sheet import contact_sheet, write_sheets

__all__ = ["VERBS", "contact_sheet", "simulate", "write_sheets"]
