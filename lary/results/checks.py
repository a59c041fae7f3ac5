"""Results that fit the schema and yet come from no run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lary.files import path_problem

if TYPE_CHECKING:
    from lary.results.record import EvalResult

LARGEST, LONGEST_TEXT = 1e100, 1 << 16  # squares stay finite
HALVES = re.compile("[\\ud800-\\udfff]")


def odd_part(parsed: Any, result: EvalResult) -> str:
    """Why readers would fail on parsed JSON and its result, if so."""
    found = [parsed]
    for value in found:  # which grows
        if isinstance(value, dict | list):
            found += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, str) and (len(value) > LONGEST_TEXT or HALVES.search(value)):
            return f"the text {value[:20]!r} is too long, or broken"
        elif isinstance(value, int | float) and not -LARGEST < value < LARGEST:
            return f"it has the number {str(value)[:20]}"
    model, data = result.model, result.dataset
    for name in (model.name, data.name, data.title, result.probe, result.preset):
        if problem := path_problem(name):
            return f"{name[:60]!r} is no name: {problem}"
    rows: list[Any] = [*result.selections.values(), *result.controls.values(), *result.per_seed]
    if result.headline not in result.selections:
        return f"it has no selection {result.headline}"
    if any(result.primary not in row.metrics for row in rows):
        return f"a part has no {result.primary[:60]!r}"
    if any(len(set(map(len, each.true + each.predicted))) > 1 for each in result.examples):
        return "an example is no table"
    return ""
