"""The command ``lary doctor``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lary.cli.places import ALL_DEFAULT, Places


def doctor(*, json: Annotated[bool, Parameter(negative=())] = False, places: Places = ALL_DEFAULT) -> int:
    """Check Python and packages, devices, decoders, settings, weights, free disk, and the hub's state.

    Args:
        json: Print the findings as JSON.
    """
    places.load_plugins()
    from lary.runs.doctor import examine

    report = examine(places.settings())
    if json:
        import json as library

        print(library.dumps(report.data(), indent=1))
    else:
        print(report.text())
    return 1 if report.broken else 0
