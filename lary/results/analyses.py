"""``lary analyze``: figures and tables made from finished runs; here those of classes.

F1 by frequency: a point of the moving average is the mean F1 of neighbouring
classes, at the geometric mean of their counts. The gap is F1 of people minus
that of robots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lary.configs import AnalysisKind, AnalyzeConfig
from lary.data.spec import DATASETS
from lary.results.ablation import codebook_ablation, stride_ablation, training_ablation
from lary.results.figures import (
    BLUE,
    LIGHT,
    VERMILION,
    Context,
    Files,
    Found,
    check_known,
    finish,
    grouped,
    new_figure,
    panels,
    slug,
)
from lary.results.folder import NO_RUN, FinishedRun, find_results
from lary.results.report import dataset_title
from lary.results.samples import attention_maps, trajectories
from lary.settings import Settings
from lary.types import LaryError, UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

LEAST = 3
"""Classes that an average spans at least."""
OCCURRING = "train > 0 and validation > 0"
"""Which rows of a table of classes have an F1."""


def make_analysis(kind: AnalysisKind, config: AnalyzeConfig, settings: Settings) -> tuple[list[Path], list[str]]:
    """Run one analysis, or all that the runs allow; returns files, and what is left out and why.

    Raises UsageError for a name that no run has, LaryError where nothing can be made.
    """
    config.check_counts("count", "window")
    out = config.out or settings.path("LARY_LOG_DIR") / "analysis"
    context = Context(_chosen_runs(config, settings), out, config, settings)
    files: list[Path] = []
    left_out: list[str] = []
    for name in ANALYSES if kind == "all" else (kind,):
        try:
            found = list(ANALYSES[name](context))
        except UsageError:
            raise
        except LaryError as error:
            found = [str(error)]
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        files += [own for own in found if isinstance(own, Path)]
        left_out += [f"{name}: {own}" for own in found if isinstance(own, str)]
    if not files:
        raise LaryError("No analysis can be made of these runs:\n  " + "\n  ".join(left_out))
    return files, left_out


def _chosen_runs(config: AnalyzeConfig, settings: Settings) -> tuple[FinishedRun, ...]:
    """The finished runs asked for, without controls. Raises UsageError."""
    folder = config.folder or settings.path("LARY_LOG_DIR")
    found = [run for run in find_results(folder)[0] if run.result.control is None and run.result.project is None]
    if not found:
        raise UsageError(NO_RUN.format(folder))
    runs = found
    for option, wanted in (("model", config.model), ("dataset", config.dataset)):
        known = sorted({getattr(run.result, option).name for run in found})
        check_known(option, wanted, known, f"no run below {folder} has it")
        runs = [run for run in runs if not wanted or getattr(run.result, option).name in wanted]
    if not runs:
        raise UsageError(f"No run below {folder} has both the --model and the --dataset that were asked for.")
    return tuple(sorted(runs, key=lambda run: (run.result.dataset.name, run.settings, run.result.label, run.folder)))


# --- F1 by frequency ---


def class_frequency(context: Context) -> Found:
    runs = context.of_task("classification", "classify")
    for (dataset, *_), group in grouped(runs).items():
        counts = [row.train for row in group[0].result.classes if row.train and row.true]
        window = context.config.window or max(LEAST, round(len(counts) / 10))
        if len(set(counts)) == 1:
            yield f"all classes of {dataset} have {counts[0]} training samples"
        elif window > len(counts):
            yield f"--window {window}: {dataset} has {len(counts)} classes that occur"
        else:
            yield from _write_frequency(context, group, window)


def _class_table(run: FinishedRun, window: int) -> DataFrame:
    """Classes of a run and their moving average, by rising frequency."""
    from pandas import DataFrame

    rows = [row.model_dump(exclude={"predicted"}) for row in run.result.classes]
    table = DataFrame(rows).rename(columns={"name": "class", "true": "validation"})
    table.insert(0, "model", run.result.label)
    table["recall"] = [row.recall.value if row.recall else None for row in run.result.classes]
    rising = table.query(OCCURRING).sort_values(["train", "class"])
    table["moving_average"] = rising["f1"].rolling(window).mean().shift(-(window // 2))
    table["centre"] = np.log(rising["train"]).rolling(window).mean().shift(-(window // 2))
    return table


def _write_frequency(context: Context, group: Sequence[FinishedRun], window: int) -> Files:
    """A panel per model, with the averages of the others in grey."""
    from pandas import concat

    tables = {run.result.label: _class_table(run, window) for run in group}
    drawn, averages, models, titles = {}, {}, {}, []
    for label, table in tables.items():
        own = drawn[label] = table.query(OCCURRING)
        # Equally frequent classes have no order.
        averages[label] = own.groupby("centre")["moving_average"].mean()
        varied = min(own["train"].nunique(), own["f1"].nunique()) > 1
        spearman = float(own["train"].corr(own["f1"], method="spearman")) if varied else None
        models[label] = {"spearman": spearman}
        titles.append(f"{label}\nSpearman {spearman:+.2f}" if spearman is not None else label)
    with panels(titles, up="F1", across="training samples of the class") as (figure, grid):
        for axes, (label, table) in zip(grid, drawn.items(), strict=True):
            for other, average in averages.items():
                if other != label:
                    axes.plot(np.exp(average.index), average, color=LIGHT, linewidth=0.9, label="other models")
            mean = averages[label]
            about = f"mean of {window} classes"
            axes.scatter(table["train"], table["f1"], s=9, color=BLUE, alpha=0.55, label="class")
            axes.plot(np.exp(mean.index), mean, color=VERMILION, linewidth=1.8, label=about)
            axes.set_xscale("log")
            # A decade may hold no power of ten, so the ticks are our own.
            ticks = np.unique(np.geomspace(table["train"].min(), table["train"].max(), 3).round())
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
            axes.minorticks_off()
            axes.set_ylim(-0.03, 1.03)
        first = group[0]
        finish(figure, axes, f"{dataset_title(first.result)}: F1 by class frequency\n{first.about}")
        name = first.result.dataset.name
        rows = concat(tables.values()).drop(columns="centre")
        stem = f"frequency_{slug(name)}{first.suffix}"
        return context.write(stem, figure, rows, first, dataset=name, window=window, models=models)


# --- people and robots ---


def human_robot_gap(context: Context) -> Found:
    human, robot = context.config.human, context.config.robot
    if human == robot:
        raise UsageError(f"--human and --robot are both {human}: a gap is between two data sets.")
    shared = sorted(set(DATASETS.get(human).labels.classes) & set(DATASETS.get(robot).labels.classes))
    groups = grouped(context.runs)
    for name in (human, robot):
        if all(dataset != name for dataset, *_ in groups):
            yield f"there is no finished run on {name}: classify on both data sets"
            return
    for (dataset, *settings), people in groups.items():
        if dataset == human:
            yield from _write_gap(context, people, groups.get((robot, *settings), []), shared)


def _write_gap(
    context: Context, people: Sequence[FinishedRun], robots: Sequence[FinishedRun], shared: list[str]
) -> Found:
    """A map of the gaps, models in rows and classes in columns, by rising mean gap."""
    from pandas import DataFrame

    human = context.config.human
    robot = context.config.robot
    first = people[0]
    ours, theirs = (
        {run.result.label: {row.name: row.f1 for row in run.result.classes if row.true} for run in side}
        for side in (people, robots)
    )
    for label in sorted(ours.keys() ^ theirs.keys()):
        yield f"{label} has a run on one of {human} and {robot} only"
    both = [label for label in ours if label in theirs]
    one, other = (DataFrame(side, index=shared, columns=both, dtype=float) for side in (ours, theirs))
    gap = (one - other).dropna(how="all")
    if gap.empty:
        yield f"no model was scored on a class that {human} and {robot} share"
        return
    order = list(gap.mean(axis=1).sort_values(kind="stable").index)
    gap = gap.loc[order]
    columns = {"f1_human": one, "f1_robot": other, "gap": gap}
    rows = DataFrame({name: table.loc[order].unstack() for name, table in columns.items()})
    rows = rows.rename_axis(["model", "class"]).reset_index()
    mean_gap = {label: float(np.nanmean(gap[label])) for label in both}
    labels = [f"{label}  {mean:+.2f}" for label, mean in mean_gap.items()]
    width = 1.5 + 0.075 * max(map(len, labels)) + 0.21 * len(order)
    height = 1.3 + 0.3 * len(both) + 0.07 * max(map(len, order))
    with new_figure(max(width, 6.0), height) as figure:
        axes = figure.subplots()
        reach = max(0.05, float(np.nanmax(gap.abs())))
        axes.set_facecolor("#eeeeee")  # a class that one of the data sets has no samples of
        image = axes.imshow(gap.T, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
        axes.set_xticks(range(len(order)), order, rotation=90, fontsize=8)
        axes.set_yticks(range(len(both)), labels)
        axes.set_title(f"F1 on {human} minus F1 on {robot}\n{first.about}", fontsize=9.5)
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, label="F1 gap, orange: people are higher")
        facts = {"human": human, "robot": robot, "shared_classes": shared, "classes_shown": order}
        stem = f"gap_{slug(human)}_{slug(robot)}{first.suffix}"
        yield from context.write(stem, figure, rows, first, **facts, mean_gap=mean_gap)


ANALYSES: Mapping[str, Callable[[Context], Found]] = {
    "frequency": class_frequency,
    "gap": human_robot_gap,
    "attention": attention_maps,
    "stride": stride_ablation,
    "codebook": codebook_ablation,
    "ablation": training_ablation,
    "trajectories": trajectories,
}
