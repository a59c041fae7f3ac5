"""The commands ``lary diagnose`` and ``lary analyze``: latents before any probe, and figures from finished runs."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lary.cli.places import ALL_DEFAULT, Places
from lary.tool_configs import AnalysisKind, AnalyzeConfig, DiagnoseConfig

ANALYZE_DEFAULT = AnalyzeConfig()
Star = Parameter(name="*")


def diagnose(config: Annotated[DiagnoseConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Diagnose extracted latents: channels, rank, use of codes, additivity and reversibility."""
    places.load_plugins()
    from lary.results.diagnostics import diagnose_split

    found, file = diagnose_split(config, places.settings())
    print(found.text())
    print(f"Written to {file}")
    return 0


def analyze(
    kind: AnalysisKind = "all",
    *,
    config: Annotated[AnalyzeConfig, Parameter(name="*", negative=())] = ANALYZE_DEFAULT,
    places: Places = ALL_DEFAULT,
) -> int:
    """Make figures and tables from finished runs.

    Args:
        kind: F1 against class frequency, gap between people and robots, attention maps, stride and codebook ablations,
            predicted trajectories, or all that the runs allow.
    """
    places.load_plugins()
    from lary.results.analyses import make_analysis

    print(make_analysis(kind, config, places.settings()).text())
    return 0
