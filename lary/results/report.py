"""``lary report``: every result below a folder as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lary import __version__
from lary.files import write_text
from lary.results.folder import WORK, run_file
from lary.results.measure import reading
from lary.results.published import png_of
from lary.results.record import FILE_NAME, EvalResult, Example, Metric, read_result
from lary.runtime import log
from lary.types import LaryError, UsageError, as_path

TEMPLATES = Path(__file__).parent / "templates"
REFERENCE = Path(__file__).parent / "reference"
"""Tables of the paper, which ship with the package."""
REPORT_NAME = "report.html"
PICTURE_SIZE = 192
PICTURE_BYTES = 20_000_000
METRIC_NAMES = {
    "top1": "Top-1", "top5": "Top-5", "macro_recall": "Mean recall", "macro_f1": "Macro F1", "seen_mse": "MSE",
    "seen_r2": "R²", "unseen_mse": "MSE, unseen", "unseen_r2": "R², unseen",
}  # fmt: skip
READINGS = {"": "", "even": "no clear difference", "better": "a clear gain", "worse": "clearly worse"}

Broken = tuple[Path, str]


@dataclass(frozen=True)
class Entry:
    """One result found: its file, its name on the page, its record."""

    path: Path
    anchor: str
    result: EvalResult


@dataclass(frozen=True)
class Contest:
    """Runs that may be ranked together, best first: the same data set, splits, task and target."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def first(self) -> EvalResult:
        """The best run's result."""
        return self.entries[0].result

    @property
    def mixed(self) -> bool:
        """Whether the runs differ in protocol, preset or seeds."""
        return len({settings_of(entry.result) for entry in self.entries}) > 1

    @cached_property
    def rows(self) -> list[tuple[str, dict[str, Metric], Entry | None]]:
        """Label, metrics and entry of every run, and of every control once, best first."""
        found: dict[Any, tuple[str, dict[str, Metric], Entry | None]] = {}
        for entry in self.entries:
            result = entry.result
            found[entry.anchor] = (result.label, result.selections[result.headline].metrics, entry)
            for name, control in result.controls.items():
                value = control.metrics.get(self.first.primary)
                found.setdefault((name, f"{value.value:.6g}" if value else ""), (name, control.metrics, None))

        def order(row: tuple[str, dict[str, Metric], Entry | None]) -> float:
            value = row[1].get(self.first.primary)
            return np.inf if value is None else -value.value if value.higher_is_better else value.value

        return sorted(found.values(), key=order)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """One example of every metric of the runs, by name."""
        found: dict[str, Metric] = {}
        for _, metrics, entry in self.rows:
            found |= {name: metric for name, metric in metrics.items() if entry and name not in found}
        return found

    @property
    def limit(self) -> float:
        """The end of the scale of the bars."""
        scores = [metrics[self.first.primary] for _, metrics, _ in self.rows if self.first.primary in metrics]
        highest = max(score.value if score.high is None else score.high for score in scores)
        return 1.0 if self.first.score.unit == "fraction" else highest

    @property
    def details(self) -> dict[str, list[float | None]]:
        """Recall by class, or error by dimension, of each of the `models`."""
        columns = []
        for entry in self.models:
            recall = {row.name: row.recall.value for row in entry.result.classes if row.recall}
            errors = {f"{row.name} ({row.split})": row.mse.value for row in entry.result.dimensions}
            columns.append(recall or errors)
        names = dict.fromkeys(name for column in columns for name in column)
        return {name: [column.get(name) for column in columns] for name in names}

    @property
    def models(self) -> list[Entry]:
        """The runs that are no controls."""
        return [entry for entry in self.entries if not entry.result.is_control]


def find_results(folder: Path) -> tuple[list[Entry], list[Broken]]:
    """Every result below a folder, and the files that can't be read with the reason.

    Raises:
        UsageError: the folder doesn't exist.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: name the folder that holds the runs, such as $LARY_LOG_DIR.")
    entries: list[Entry] = []
    broken: list[Broken] = []
    for path in sorted(folder.rglob(FILE_NAME)):
        if path.parent.name == WORK:  # staged, not published
            continue
        try:
            entries.append(Entry(path, f"run-{len(entries) + 1}", read_result(path)))
        except LaryError as error:
            log.warning("left out of the report: %s", error)
            broken.append((path.relative_to(folder), str(error).replace(str(path), path.name)))
    return entries, broken


def write_report(folder: str | Path, target: str | Path | None = None) -> Path:
    """Write the report of all results below `folder`, to ``report.html`` in it or to `target`; returns where.

    Raises:
        UsageError: the folder doesn't exist, or holds no result.
    """
    folder = as_path(folder)
    entries, broken = find_results(folder)
    if not entries and not broken:
        raise UsageError(f"No {FILE_NAME} below {folder}: run 'lary classify' or 'lary regress' first.")
    path = as_path(target) if target else folder / REPORT_NAME
    write_text(path, build_page(entries, broken))
    return path


def build_page(entries: Sequence[Entry], broken: Sequence[Broken] = ()) -> str:
    """The page as text. The same results give the same page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "bounds": bounds, "metric_name": metric_name, "settings": settings_of,
        "dataset_title": dataset_title, "published": published_score,
        "by_recall": lambda rows: sorted(rows, key=lambda row: (-(row.recall.value if row.recall else -1), row.name)),
        "by_distance": lambda rows: sorted(rows, key=lambda row: abs(row.gain.value)),
        "as_json": lambda value: json.dumps(value, ensure_ascii=False, default=str),
    }  # fmt: skip
    environment.globals |= {
        "verdict": lambda gain, p=None: READINGS[reading(gain, p)], "confusion_picture": confusion_picture,
        "panels": panels, "pictures": pictures,
    }  # fmt: skip
    contests = contests_of(entries)
    results = [entry.result for entry in entries]
    return environment.get_template("report.html").render(
        version=__version__, broken=broken, contests=contests, overview=overview(contests), results=results,
        spent=sum(sum(result.timings.values()) for result in results), published_tables=PUBLISHED,
    )  # fmt: skip


# --- what is compared with what ---


def contests_of(entries: Sequence[Entry]) -> list[Contest]:
    """Runs that may be ranked together, by the name of their data set, splits and target."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        mode = " (relative actions)" if entry.result.action_mode == "relative" else ""
        mode = " (local relative actions)" if entry.result.relative_frame == "local" else mode
        if entry.result.dataset.split_set:
            mode = f" (splits {entry.result.dataset.split_set}){mode}"
        found.setdefault(f"{dataset_title(entry.result)}{mode}", []).append(entry)

    def rank(entry: Entry) -> tuple[float, str]:
        score = entry.result.score
        return (-score.value if score.higher_is_better else score.value, entry.result.label)

    return [Contest(name, tuple(sorted(group, key=rank))) for name, group in sorted(found.items())]


def overview(contests: Sequence[Contest]) -> dict[tuple[str, str, str], dict[str, list[EvalResult]]]:
    """The results of every model, protocol and preset by contest, those with the best mean rank first."""
    found: dict[tuple[str, str, str], dict[str, list[EvalResult]]] = {}
    ranks: dict[tuple[str, str, str], list[float]] = {}
    for contest in contests:
        for rank, entry in enumerate(contest.entries):
            result = entry.result
            if not result.is_control:
                key = (result.label, result.protocol, result.preset)
                found.setdefault(key, {}).setdefault(contest.name, []).append(result)
                ranks.setdefault(key, []).append(rank / len(contest.entries))
    return {key: found[key] for key in sorted(found, key=lambda key: (np.mean(ranks[key]), key))}


def dataset_title(result: EvalResult) -> str:
    """Name of the paper and key of a data set, once where they agree."""
    data = result.dataset
    return data.name if data.title in ("", data.name) else f"{data.title} ({data.name})"


def settings_of(result: EvalResult) -> str:
    """Protocol, preset and seeds in short."""
    several = f"seeds {', '.join(map(str, result.seeds))}" if len(result.seeds) > 1 else f"seed {result.seed}"
    return f"{result.protocol}, {result.preset}, {several}"


# --- numbers as text ---


def metric_name(name: str) -> str:
    """Name of a metric for people."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def number(value: float, unit: str = "none") -> str:
    """A number as it is printed: one decimal for per cent and degrees, else three decimals or digits."""
    if unit in ("fraction", "degrees"):
        return f"{100 * value if unit == 'fraction' else value:.1f}"
    return f"{value:.3f}" if 0.0005 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def bounds(metric: Metric) -> str:
    """The interval as ``[low, high]``, or nothing."""
    if metric.low is None or metric.high is None:
        return ""
    return f"[{number(metric.low, metric.unit)}, {number(metric.high, metric.unit)}]"


# --- charts ---


def confusion_picture(matrix: Sequence[Sequence[int]]) -> str:
    """Shares of the true class (L, L) as a PNG whose opacity is the share, which suits a light and a dark page."""
    shares = np.asarray(matrix) / np.maximum(np.sum(matrix, axis=0), 1)
    pixels = np.full((*shares.shape, 4), (43, 140, 196, 0), dtype=np.uint8)
    pixels[..., 3] = np.round(255 * shares)
    return _address(png_of(pixels), "png")


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def pictures(entry: Entry, example: Example) -> Iterator[tuple[str, str]]:
    """Source and target frame of an example as small JPEG data addresses, as far as they can be read."""
    import warnings

    from PIL import Image

    for part, name in zip(("source", "target"), example.pictures, strict=False):
        try:
            path = run_file(entry.path.parent, entry.result, name)
            if path.stat().st_size > PICTURE_BYTES:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Pillow warns of decompression bombs
                image = Image.open(path).convert("RGB")
        except (LaryError, OSError, ValueError, Warning, Image.DecompressionBombError):
            continue
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        stream = io.BytesIO()
        image.save(stream, format="JPEG", quality=82)
        yield part, _address(stream.getvalue(), "jpeg")


def panels(result: EvalResult, example: Example) -> Iterator[Mapping[str, Any]]:
    """Geometry of predicted and true chunk of one sample, one panel of 88 x 62 per dimension, in physical units."""
    predicted, true = np.asarray(example.predicted), np.asarray(example.true)
    names = list(dict.fromkeys(row.name for row in result.dimensions))
    if predicted.ndim != 2 or predicted.shape != true.shape or predicted.shape[1] != len(names) or not len(true):
        return
    across = np.linspace(5, 83, len(true)) if len(true) > 1 else np.array([44.0])
    for index, (name, unit) in enumerate(zip(names, [*result.dataset.units, *([""] * len(names))], strict=False)):
        series = {"true": true[:, index], "predicted": predicted[:, index]}
        low, high = (float(end) for end in (min(map(np.min, series.values())), max(map(np.max, series.values()))))
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        digits = int(np.clip(1 - np.floor(np.log10(high - low)), 0, 4))
        heights = {kind: 5 + 52 * (1 - (values - low) / (high - low)) for kind, values in series.items()}
        yield {
            "title": f"{name} [{unit}]" if unit else name, "low": f"{low:.{digits}f}", "high": f"{high:.{digits}f}",
            "error": float(np.sqrt(np.mean((series["predicted"] - series["true"]) ** 2))),
            "lines": {kind: list(zip(across, down, strict=True)) for kind, down in heights.items()},
        }  # fmt: skip


# --- tables of the paper ---


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper; its columns are keys of data sets, but for those that `columns` names by key."""

    file: str
    title: str
    about: str
    higher_is_better: bool | None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows by column name."""
        return read_reference(self.file)


PUBLISHED = (
    PublishedTable("leaderboard_classification", "Action classification", "Top-1 accuracy in per cent.", True),
    PublishedTable(
        "leaderboard_regression", "Action regression", "Mean squared error, normalised; lower is better.", False
    ),
    PublishedTable(
        "leaderboard_vlabench_stride",
        "Regression by stride",
        "VLABench, mean squared error; lower is better.",
        False,
        {"vlabench_15": "stride_15", "vlabench_30": "stride_30"},
    ),
    PublishedTable(
        "lam_ablation", "Ablation of a latent action model", "Accuracies in per cent, errors normalised.", None
    ),
)


@lru_cache
def read_reference(name: str) -> list[dict[str, str]]:
    """Rows of a table that ships with the package."""
    with (REFERENCE / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def published_score(result: EvalResult) -> Metric | None:
    """The paper's number for the same model, data set and kind of probe, where it has one."""
    if result.action_mode == "relative" or result.dataset.split_set or result.label != result.model.name:
        return None
    for source in PUBLISHED:
        column = source.columns.get(result.dataset.name, result.dataset.name)
        for row in source.rows if source.higher_is_better is result.score.higher_is_better else ():
            if row["model"] == result.model.name and column in row:
                return Metric(value=float(row[column]) / result.score.scale, unit=result.score.unit)
    return None
