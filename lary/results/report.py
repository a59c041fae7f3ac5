"""``lary report``: every result below a folder as one HTML page."""

import base64
import functools
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from lary import __version__
from lary.data.images import read_image
from lary.files import write_text
from lary.models.overview import paper_rows
from lary.results.folder import Broken, FinishedRun, find_results
from lary.results.published import png_of
from lary.results.ranking import Row, pooled_rows, ranked
from lary.results.record import FILE_NAME, EvalResult, Example, Metric, number
from lary.types import JsonDict, LaryError, UsageError, as_path

TEMPLATES = Path(__file__).parent / "templates"
REPORT_NAME = "report.html"
MOST_WHOLE = 60
"""Runs whose details are on the page; more have files beside it."""
PICTURE_SIZE = 192
PICTURE_BYTES = 20_000_000
METRIC_NAMES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "macro_recall": "Mean recall",
    "macro_f1": "Macro F1",
    "seen_mse": "MSE",
    "seen_r2": "R²",
    "unseen_mse": "MSE, unseen",
    "unseen_r2": "R², unseen",
}
READINGS = {"": "", "even": "no clear difference", "better": "a clear gain", "worse": "clearly worse"}
PUBLISHED = {
    "leaderboard_classification": True,
    "leaderboard_regression": False,
    "leaderboard_vlabench_stride": False,
    "lam_ablation": None,
}
"""Tables of the paper, whose columns are keys of data sets: whether higher is better."""
PAPER = {"protocol": "paper", "preset": "paper", "actions": "absolute", "probe": "", "splits": ""}  # of its tables


def write_report(folder: str | Path, target: str | Path | None = None) -> Path:
    """Write the report of all results below `folder` to ``report.html`` in it or `target`; returns where.

    Details of many runs are in files beside it. Raises UsageError without a folder or a result.
    """
    folder = as_path(folder)
    runs, broken = find_results(folder)
    if not runs and not broken:
        raise UsageError(f"No {FILE_NAME} below {folder}: run 'lary classify' or 'lary regress' first.")
    path = as_path(target) if target else folder / REPORT_NAME
    beside = f"{path.stem}_runs" if len(runs) > MOST_WHOLE else ""
    try:
        page = _page(runs, broken, path.parent, beside)
    except Exception:  # costs the odd run alone
        found = [(run, _problem(run)) for run in runs]
        broken += [(run.folder.relative_to(folder) / FILE_NAME, why) for run, why in found if why]
        runs = [run for run, why in found if not why]
        page = _page(runs, broken, path.parent, beside)
    write_text(path, page)
    for run in runs if beside else ():
        own = path.parent / beside / f"run-{run.number}.html"
        write_text(own, _page([run], (), own.parent))
    return path


def _problem(run: FinishedRun) -> str:
    """Why a run can't be shown, if so."""
    try:
        _page([run], (), run.folder)
    except Exception as error:
        return f"it can't be shown: {type(error).__name__}: {error}"
    return ""


@functools.cache
def _environment() -> Any:
    """The templates, which take longer to compile than a page to make."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "verdict": lambda gain, p=None: READINGS[gain.reading(p)],
        "confusion_picture": _confusion_picture,
        "pictures": _pictures,
        "paper_rows": paper_rows,
    }
    return environment


def _page(runs: Sequence[FinishedRun], broken: Sequence[Broken], folder: Path, beside: str = "") -> str:
    """The page of a folder as text. The same results give the same page."""
    environment = _environment()
    for filter in (number, metric_name, settings_of, dataset_title):
        environment.filters[filter.__name__] = filter
    environment.filters["link"] = lambda run: quote(Path(os.path.relpath(run.folder / FILE_NAME, folder)).as_posix())
    return str(
        environment.get_template("report.html").render(
            beside=beside,
            version=__version__,
            broken=broken,
            contests=contests_of(runs),
            results=[run.result for run in runs],
            published_tables=PUBLISHED,
        )
    )


# --- what is compared with what ---


def contests_of(runs: Sequence[FinishedRun]) -> list[JsonDict]:
    """Runs that may be ranked together, best first."""
    found: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.result.score.rank, run.result.label)):
        key = (column_title(run.result), run.result.kind, run.result.task, run.result.primary)
        found.setdefault(key, []).append(run)
    contests = []
    for (title, kind, _, primary), own in sorted(found.items()):
        rules = {name: each.metrics for run in reversed(own) for name, each in run.result.controls.items()}
        beside, reason = published_rows(own[0])
        beside += [Row(name.replace("_", " "), "control", metrics) for name, metrics in rules.items()]
        rows = ranked([*pooled_rows(own), *beside], primary)
        names = {"title": title, "kind": kind, "name": f"{title} · {kind}", "unpublished": reason}
        contests.append({**names, "runs": own, "rows": rows})
    return contests


def column_title(result: EvalResult) -> str:
    """The data set of a result, with its splits, actions and folds."""
    splits = f" (splits {result.dataset.split_set})" if result.dataset.split_set else ""
    local = "local " if result.relative_frame == "local" else ""
    mode = f" ({local}relative actions)" if result.action_mode == "relative" else ""
    folds = f" ({result.folds} folds)" if result.folds else ""
    return f"{dataset_title(result)}{splits}{mode}{folds}"


def dataset_title(result: EvalResult) -> str:
    """Name of the paper and key of a data set, once where they agree."""
    data = result.dataset
    return data.name if data.title in ("", data.name) else f"{data.title} ({data.name})"


def settings_of(result: EvalResult) -> str:
    several = f"seeds {', '.join(map(str, result.seeds))}" if len(result.seeds) > 1 else f"seed {result.seed}"
    return f"{result.protocol}, {result.preset}, {several}"


def metric_name(name: str) -> str:
    return METRIC_NAMES.get(name, name.replace("_", " "))


# --- charts ---


def _confusion_picture(matrix: Sequence[Sequence[int]]) -> str:
    """Shares of the true class (L, L) as opacity of a PNG."""
    shares = np.asarray(matrix) / np.maximum(np.sum(matrix, axis=0), 1)
    pixels = np.full((*shares.shape, 4), (43, 140, 196, 0), dtype=np.uint8)
    pixels[..., 3] = np.round(255 * shares)
    return f"data:image/png;base64,{base64.b64encode(png_of(pixels)).decode()}"


def _pictures(run: FinishedRun, example: Example) -> Iterator[tuple[str, str]]:
    """Frames of an example as data addresses."""
    from PIL import Image

    for part, name in zip(("source", "target"), example.pictures, strict=False):
        stream = io.BytesIO()
        try:
            path = run.file(name)
            if path.stat().st_size > PICTURE_BYTES:
                continue
            image = Image.fromarray(read_image(path, "pil"))
        except (LaryError, OSError):
            continue
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        image.save(stream, format="JPEG", quality=82)
        yield part, f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


# --- tables of the paper ---


def paper_scores(result: EvalResult) -> dict[str, Metric]:
    """The paper's numbers for the data set of a result, by model."""
    score, data = result.score, result.dataset.name
    names = [name for name, higher in PUBLISHED.items() if higher is score.higher_is_better]
    rows = [row for name in names for row in paper_rows(name) if row.get(data)]
    values = {row["model"]: float(row[data]) / score.scale for row in rows}
    higher = score.higher_is_better
    return {name: Metric(value=own, unit=score.unit, higher_is_better=higher) for name, own in values.items()}


def published_score(result: EvalResult) -> Metric | None:
    """The paper's number for the model, data set and kind of probe, if any."""
    if result.action_mode == "relative" or result.dataset.split_set or result.label != result.model.name:
        return None
    return paper_scores(result).get(result.model.name)


def published_rows(run: FinishedRun) -> tuple[list[Row], str]:
    """Rows of the paper to compare a run with, or why there are none."""
    own = zip(PAPER.items(), (*run.settings, run.result.dataset.split_set), strict=True)
    differs = [f"{name} {value}" for (name, usual), value in own if value not in ("", usual)]
    found = paper_scores(run.result).items()
    if not found:
        return [], "The paper has no such data set."
    if differs:
        which = f"these runs, which have {', '.join(differs)}"
        return [], f"The paper's numbers for this data set are not beside {which}."
    return [Row(f"{name} (paper)", "published", {run.result.primary: own}) for name, own in found], ""
