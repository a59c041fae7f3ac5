"""The controls of a model as ordinary runs, and the margin of the model over each.

Shuffled targets measure chance (Hewitt and Liang 2019), static pairs single
frames, shuffled order what needs none. Majority class and mean action are in
every result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lary.configs import ControlsConfig, ProbeControl, RunConfig
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, find_latent_table
from lary.models.choices import CHOICES
from lary.models.spec import MODELS, ModelSpec
from lary.results.compare import compare
from lary.results.record import ALONE, FILE_NAME, EvalResult, Margin, number, write_result
from lary.runs.extract import FRAME_CONTROLS
from lary.runs.probe import ProbeRun
from lary.runs.run import run_splits
from lary.runtime import log
from lary.settings import Settings
from lary.types import JsonDict, LaryError, UsageError

CONTROLS: tuple[ProbeControl, ...] = ("shuffled-targets", "static-pair", "shuffled-order")
BASELINE = "baseline"
MARKS = {"": "", "better": "", "even": "  (not significant)", "worse": "  (the control is better)"}
"""Text behind a control that the model does not beat."""


@dataclass(frozen=True)
class ControlReport:
    """The model's result with its margins, and why controls were left out."""

    result: EvalResult
    left_out: tuple[str, ...]

    def text(self) -> str:
        """One line per control, the ones nearest to the model first."""
        result, score = self.result, self.result.score
        lines = [f"{result.label} on {result.dataset.name}: {result.primary} {score.text()} ({score.better} is better)"]
        for name, control in result.controls.items():
            value = control.metrics[result.primary].text()
            lines.append(f"  {name.replace('_', ' '):32} {value:28} margin {control.gain.text()}")
        for margin in sorted(result.margins, key=lambda margin: abs(margin.gain.value)):
            value = number(margin.value, score.unit)
            p = "" if margin.p is None else f"  p {margin.p:.3g}"
            mark = MARKS["" if margin.p is None else margin.gain.reading(margin.p)]
            lines.append(f"  {margin.name:32} {value:28} margin {margin.gain.text()}{p}{mark}")
        lines += [f"  note: {ALONE}"] if len(result.seeds) < 2 else []
        return "\n".join([*lines, *(f"  left out: {reason}" for reason in self.left_out)])


def run_controls(config: ControlsConfig, settings: Settings) -> ControlReport:
    """Run a model and its controls, and write the margins into the model's result.

    The unseen split counts where it has latents. Raises UsageError, LaryError.
    """
    model = MODELS.get(config.model)
    dataset = DATASETS.get(config.dataset)
    roles = dataset.roles(config.splits)
    if "unseen" in roles and find_latent_table(settings, LatentsRef.of(config, roles["unseen"])) is None:
        del roles["unseen"]
    splits = list(roles.values())
    own = run_one(config, settings, splits, model)
    folders, left_out = [own.folder], []
    for asked, changes in plan(config, model, own.result):
        try:
            folders.append(run_one(config, settings, splits, asked, **changes).folder)
        except LaryError as error:
            if not isinstance(error, UsageError) and changes.get("control") not in FRAME_CONTROLS:
                raise
            left_out.append(f"{' '.join([asked.name, *map(str, changes.values())])}: {error}")
            log.warning("%s", error)
    margins = []
    for each in compare(*folders).differences:
        other = each.other.result
        value = other.score.value
        margins.append(Margin(name=other.label, value=value, gain=each.gain, p=each.p, result=other.identity))
    result = own.result.model_copy(update={"margins": tuple(margins)})
    write_result(own.folder / FILE_NAME, result)
    return ControlReport(result, tuple(left_out))


def plan(config: ControlsConfig, model: ModelSpec, own: EvalResult) -> list[tuple[ModelSpec, JsonDict]]:
    """The models to run besides the own run, and the options that differ."""
    found: list[tuple[ModelSpec, JsonDict]] = [(model, {"control": control}) for control in CONTROLS]
    if own.model.dim is not None and config.project < own.model.dim:
        found.append((model, {"project": config.project}))
    if model.weights is not None:
        found.append((model, {"weights": "random"}))
    baselines = [other for other in MODELS if other.paradigm == BASELINE and other.weights is None]
    return found + [(other, {}) for other in baselines if other.name != model.name]


def run_one(
    config: ControlsConfig, settings: Settings, splits: Sequence[str], model: ModelSpec, **changes: Any
) -> ProbeRun:
    """One probe run with its latents; baselines have one kind of latent."""
    given = vars(config) | {"model": model.name, "project": None}
    if model.name != config.model:
        given |= dict.fromkeys((*CHOICES, "name"))
    return run_splits(RunConfig(**given | changes), splits, settings, replace_latents=False).probe
