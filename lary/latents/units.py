"""Units of work: some rows of a table that one worker takes from the queue, encodes and commits as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from lary.types import Failure, LaryError


@dataclass(frozen=True)
class Unit:
    """What is left to do of the rows ``[number * unit_rows, (number + 1) * unit_rows)``."""

    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class UnitReport:
    """A unit that is committed: how many of its rows have latents now, and which ones failed."""

    number: int
    done: int
    failures: tuple[Failure, ...]


class Interrupted(LaryError):
    """The user stopped the run: what was begun is finished and kept. Exit code 130, as shells have it."""

    exit_code = 130


def plan_units(pending: Iterable[int], unit_rows: int) -> list[Unit]:
    """The units that hold the pending rows, which are ascending."""
    return [Unit(number, tuple(rows)) for number, rows in groupby(pending, lambda row: row // unit_rows)]
