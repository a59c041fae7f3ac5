"""``lary report``: every result below a folder as one HTML page."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lary import __version__
from lary.data.images import read_image
from lary.files import write_text
from lary.models.overview import paper_rows
from lary.results.folder import Broken, FinishedRun, find_results
from lary.results.published import png_of
from lary.results.record import FILE_NAME, EvalResult, Example, Metric, number
from lary.types import JsonDict, LaryError, UsageError, as_path

TEMPLATES = Path(__file__).parent / "templates"
REPORT_NAME = "report.html"
PICTURE_SIZE = 192
PICTURE_BYTES = 20_000_000
METRIC_NAMES = {"top1": "Top-1", "top5": "Top-5", "macro_recall": "Mean recall", "macro_f1": "Macro F1"}
METRIC_NAMES |= {"seen_mse": "MSE", "seen_r2": "R²", "unseen_mse": "MSE, unseen", "unseen_r2": "R², unseen"}
READINGS = {"": "", "even": "no clear difference", "better": "a clear gain", "worse": "clearly worse"}
PUBLISHED = {
    "leaderboard_classification": True,
    "leaderboard_regression": False,
    "leaderboard_vlabench_stride": False,
    "lam_ablation": None,
}
"""Tables of the paper, whose columns are keys of data sets: whether higher is better."""
BoardRow = tuple[str, Mapping[str, Metric], FinishedRun | None]
"""Label, metrics and run."""


def write_report(folder: str | Path, target: str | Path | None = None) -> Path:
    """Write the report of all results below `folder` to ``report.html`` in it or `target`.

    Returns where. Raises UsageError where there is no folder or no result in it.
    """
    folder = as_path(folder)
    runs, broken = find_results(folder)
    if not runs and not broken:
        raise UsageError(f"No {FILE_NAME} below {folder}: run 'lary classify' or 'lary regress' first.")
    path = as_path(target) if target else folder / REPORT_NAME
    try:
        page = _page(runs, broken)
    except Exception:  # costs the odd run alone
        found = [(run, _problem(run)) for run in runs]
        broken += [(run.folder.relative_to(folder) / FILE_NAME, why) for run, why in found if why]
        page = _page([run for run, why in found if not why], broken)
    write_text(path, page)
    return path


def _problem(run: FinishedRun) -> str:
    """Why a run can't be shown, if so."""
    try:
        _page([run], ())
    except Exception as error:
        return f"it can't be shown: {type(error).__name__}: {error}"
    return ""


def _page(runs: Sequence[FinishedRun], broken: Sequence[Broken]) -> str:
    """The page as text. The same results give the same page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter in (number, metric_name, settings_of, dataset_title, published_score):
        environment.filters[filter.__name__] = filter
    environment.filters["as_json"] = lambda value: json.dumps(value, ensure_ascii=False, default=str)
    environment.globals |= {
        "verdict": lambda gain, p=None: READINGS[gain.reading(p)],
        "confusion_picture": _confusion_picture,
        "pictures": _pictures,
        "paper_rows": paper_rows,
    }
    return environment.get_template("report.html").render(
        version=__version__,
        broken=broken,
        contests=contests_of(runs),
        results=[run.result for run in runs],
        published_tables=PUBLISHED,
    )


# --- what is compared with what ---


def board_rows(runs: Sequence[FinishedRun]) -> list[BoardRow]:
    """Label, metrics and run of every run, and of every control once, best first."""
    primary = runs[0].result.primary
    found: dict[Any, BoardRow] = {}
    for run in runs:
        result = run.result
        found[run.number, run.folder] = (result.label, result.selections[result.headline].metrics, run)
        for name, control in result.controls.items():
            value = control.metrics.get(primary)
            found.setdefault((name, f"{value.value:.6g}" if value else ""), (name, control.metrics, None))
    return sorted(found.values(), key=lambda row: row[1][primary].rank if primary in row[1] else np.inf)


def contests_of(runs: Sequence[FinishedRun]) -> list[JsonDict]:
    """Runs that may be ranked together, best first."""
    found: dict[Any, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.result.score.rank, run.result.label)):
        key = (column_title(run.result), run.result.kind, run.result.task, run.result.primary)
        found.setdefault(key, []).append(run)
    contests = sorted(found.items())
    return [{"name": " · ".join(key[:2]), "runs": own, "rows": board_rows(own)} for key, own in contests]


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
    """Protocol, preset and seeds in short."""
    several = f"seeds {', '.join(map(str, result.seeds))}" if len(result.seeds) > 1 else f"seed {result.seed}"
    return f"{result.protocol}, {result.preset}, {several}"


def metric_name(name: str) -> str:
    """Name of a metric for people."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


# --- charts ---


def _confusion_picture(matrix: Sequence[Sequence[int]]) -> str:
    """Shares of the true class (L, L) as opacity of a PNG, which suits light and dark pages."""
    shares = np.asarray(matrix) / np.maximum(np.sum(matrix, axis=0), 1)
    pixels = np.full((*shares.shape, 4), (43, 140, 196, 0), dtype=np.uint8)
    pixels[..., 3] = np.round(255 * shares)
    return f"data:image/png;base64,{base64.b64encode(png_of(pixels)).decode()}"


def _pictures(run: FinishedRun, example: Example) -> Iterator[tuple[str, str]]:
    """Source and target frame of an example as data addresses, as far as they can be read."""
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


def published_score(result: EvalResult) -> Metric | None:
    """The paper's number for the same model, data set and kind of probe, where it has one."""
    if result.action_mode == "relative" or result.dataset.split_set or result.label != result.model.name:
        return None
    for name, higher in PUBLISHED.items():
        for row in paper_rows(name) if higher is result.score.higher_is_better else ():
            if row["model"] == result.model.name and result.dataset.name in row:
                return Metric(value=float(row[result.dataset.name]) / result.score.scale, unit=result.score.unit)
    return None
