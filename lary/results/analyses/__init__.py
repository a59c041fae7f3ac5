"""``lary analyze``: figures and tables made from finished runs; one analysis, or all that the runs allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lary.configs import AnalysisKind, AnalyzeConfig
from lary.results.analyses.ablations import codebook_ablation, stride_ablation
from lary.results.analyses.attention import attention_maps
from lary.results.analyses.base import Analysis, Context, NotPossible, find_runs
from lary.results.analyses.classes import class_frequency, human_robot_gap
from lary.results.analyses.trajectories import trajectories
from lary.settings import Settings
from lary.types import LaryError, UsageError

ANALYSES: Mapping[str, Callable[[Context], Analysis]] = {
    "frequency": class_frequency,
    "gap": human_robot_gap,
    "attention": attention_maps,
    "stride": stride_ablation,
    "codebook": codebook_ablation,
    "trajectories": trajectories,
}


def make_analysis(kind: AnalysisKind, config: AnalyzeConfig, settings: Settings) -> Analysis:
    """Run one analysis, or every one that the runs allow.

    Raises:
        UsageError: no runs, runs that the analysis can't be made from, or a sample or episode that isn't there.
        LaryError: files of the runs are missing or torn; with ``all``, nothing could be made.
    """
    for name, value in (("count", config.count), ("window", config.window)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: must be at least 1.")
    out = config.out or settings.path("LARY_LOG_DIR") / "analysis"
    context = Context(find_runs(config, settings), out, config, settings)
    files: list[Path] = []
    left_out: list[str] = []
    for name in ANALYSES if kind == "all" else (kind,):
        try:
            found = ANALYSES[name](context)
        except LaryError as error:
            if kind != "all":
                raise type(error)(f"{name}: {error}") from error
            if isinstance(error, UsageError) and not isinstance(error, NotPossible):
                raise
            left_out.append(f"{name}: {error}")
            continue
        files += found.files
        left_out += (f"{name}: {reason}" for reason in found.left_out)
    if not files and kind == "all":
        raise LaryError("No analysis can be made of these runs:\n  " + "\n  ".join(left_out))
    return Analysis(tuple(files), tuple(left_out))
