"""The commands that read what there is: settings, models, data sets, stored latents, finished runs, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from lary.configs import (
    AnalysisKind,
    AnalyzeConfig,
    CheckModelConfig,
    DiagnoseConfig,
    LatentDtype,
    LatentsConfig,
    Paths,
    StoreKind,
)
from lary.registry import load_plugin
from lary.settings import CONFIG_NAME, init_config, set_config
from lary.types import UsageError

Star = Parameter(name="*")
Flag = Parameter(negative=())

config_app = App(name="config", help="Show or change settings.", help_format="plaintext")
latents_app = App(
    name="latents", help="Inspect, verify, convert and export extracted latents.", help_format="plaintext"
)


def doctor(*, paths: Paths = Paths()) -> int:
    """Check Python and packages, devices, decoders, settings and weights."""
    settings = paths.settings()
    from lary.runs.doctor import examine

    lines = examine(settings)
    for broken, name, text in lines:
        print(f"{'!' if broken else ' '} {name:24} {text}")
    count = sum(broken for broken, *_ in lines)
    print(f"{count} broken" if count else "Nothing is broken.")
    return 1 if count else 0


def models(key: str | None = None, *, paths: Paths = Paths()) -> int:
    """List the models and whether their weights are here, or show the record of one.

    Args:
        key: Model to show.
    """
    values = paths.settings().values()
    from lary.models.overview import model_text, models_table
    from lary.models.spec import MODELS

    print(model_text(MODELS.get(key), values) if key else models_table(values))
    return 0


def datasets(key: str | None = None, *, paths: Paths = Paths()) -> int:
    """List the data sets with their terms, or show the record of one and how to cite it.

    Args:
        key: Data set to show.
    """
    paths.settings()
    from lary.data.spec import DATASETS, dataset_text, datasets_table

    print(dataset_text(DATASETS.get(key)) if key else datasets_table())
    return 0


def check_model(
    key: str, config: Annotated[CheckModelConfig, Star] = CheckModelConfig(), paths: Paths = Paths()
) -> int:
    """Try a model on generated frames: shapes, range, determinism, use of the second frame, time.

    Args:
        key: Model, or FILE.py:NAME for one that a file registers.
    """
    settings = paths.settings()
    file, colon, name = key.rpartition(":")
    if colon and file.endswith(".py"):
        load_plugin(file)
        key = name
    elif key.endswith(".py"):
        raise UsageError(f"check-model {key}: name the model that the file registers, as {key}:NAME.")
    from lary.models import overview
    from lary.models.spec import MODELS

    check = overview.check_model(MODELS.get(key), config, settings.values())
    print(check.text())
    return 1 if check.problems else 0


def diagnose(config: Annotated[DiagnoseConfig, Star], paths: Paths = Paths()) -> int:
    """Diagnose extracted latents: channels, rank, use of codes, additivity and reversibility."""
    settings = paths.settings()
    from lary.results.diagnostics import diagnose_split, diagnosis_text

    found, file = diagnose_split(config, settings)
    print(diagnosis_text(found), f"Written to {file}", sep="\n")
    return 0


def analyze(
    kind: AnalysisKind = "all",
    *,
    config: Annotated[AnalyzeConfig, Parameter(name="*", negative=())] = AnalyzeConfig(),
    paths: Paths = Paths(),
) -> int:
    """Make figures and tables from finished runs.

    Args:
        kind: F1 against class frequency, gap between people and robots, attention maps, stride and codebook ablations,
            predicted trajectories, or all that the runs allow.
    """
    settings = paths.settings()
    from lary.results.analyses import make_analysis

    print(make_analysis(kind, config, settings).text())
    return 0


def report(folder: Path | None = None, *, out: Path | None = None, paths: Paths = Paths()) -> int:
    """Write one offline HTML page of all results below a folder.

    Args:
        folder: Folder with result.json files; default: LARY_LOG_DIR.
        out: File to write; default: report.html in that folder.
    """
    from lary.results.report import write_report

    print(write_report(folder or paths.settings().path("LARY_LOG_DIR"), out))
    return 0


def compare(*results: Path, role: Literal["seen", "unseen"] = "seen", seed: int = 0, json: Path | None = None) -> int:
    """Compare the first result with each of the others: paired difference, interval, p value corrected by Holm.

    Args:
        results: Folders of finished runs, or their result.json files.
        role: Split to compare on.
        seed: Seed of the resampling.
        json: File for the differences as JSON.
    """
    from lary.files import write_json
    from lary.results.compare import compare_results

    found = compare_results(results, role, seed)
    print(found.text())
    if json is not None:
        rows = [
            {
                "other": str(each.other.folder), "gain": each.gain.model_dump(), "p": each.p,
                "samples": each.samples, "groups": each.groups,
            }
            for each in found.differences
        ]  # fmt: skip
        write_json(json, {"first": str(found.first.folder), "role": role, "differences": rows})
    return 0


def schema(*, out: Path | None = None) -> int:
    """Print the JSON Schema of result.json.

    Args:
        out: File to write it to instead.
    """
    from lary.files import write_text
    from lary.results.record import schema_text

    if out is None:
        print(schema_text(), end="")
    else:
        write_text(out, schema_text())
        print(f"Wrote {out}")
    return 0


@latents_app.command
def info(config: Annotated[LatentsConfig, Star], paths: Paths = Paths()) -> int:
    """Describe a store: identity, kind, rows, bytes, shape, and the samples of its table that it lacks."""
    settings = paths.settings()
    from lary.latents.tools import store_info as run

    print(run(config, settings).text())
    return 0


@latents_app.command
def verify(config: Annotated[LatentsConfig, Star], paths: Paths = Paths()) -> int:
    """Read every row of a store: checksums, finite values, index. Names what is wrong; exit code 1 then."""
    settings = paths.settings()
    from lary.latents.tools import verify_store as run

    rows, problems = run(config, settings)
    print(*problems, f"{rows} rows read, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


@latents_app.command
def convert(
    config: Annotated[LatentsConfig, Star],
    *,
    store: StoreKind,
    dtype: LatentDtype | None = None,
    shard_rows: int = 1024,
    paths: Paths = Paths(),
) -> int:
    """Convert a store to another kind or number format, in place; its table names the new files.

    Args:
        store: Kind of the new store.
        dtype: Number format of the new store; default: that of the old one.
        shard_rows: Rows per shard.
    """
    settings = paths.settings()
    from lary.latents.tools import convert_store as run

    folder, rows = run(config, settings, kind=store, dtype=dtype, shard_rows=shard_rows)
    print(f"{folder}: {rows} rows in {store}")
    return 0


@latents_app.command
def export(
    config: Annotated[LatentsConfig, Star],
    *,
    out: Path,
    rows: str | None = None,
    ids: str | None = None,
    paths: Paths = Paths(),
) -> int:
    """Write tokens to one file for other tools: .npy, .npz, .parquet or .safetensors.

    Args:
        out: File to write; its ending decides the form.
        rows: Rows of the table from 1, such as 1-100,205; default: all.
        ids: Sample ids with commas, or a text file with one in each line.
    """
    settings = paths.settings()
    from lary.latents.export import export_latents as run

    print(f"{out}: {run(config, settings, out, rows=rows, ids=ids)} samples")
    return 0


@config_app.command
def show(*, paths: Paths = Paths()) -> int:
    """Show every setting, its value and where that comes from."""
    for item in paths.settings().items.values():
        print(f"{item.name:24} {item.value or '-':40} {item.origin}")
    return 0


@config_app.command
def init(file: Path = Path(CONFIG_NAME), *, overwrite: Annotated[bool, Flag] = False) -> int:
    """Write a lary.yaml that lists every setting with its meaning.

    Args:
        file: File to write.
        overwrite: Replace a file that is there.
    """
    print(f"Wrote {init_config(file, overwrite=overwrite)}")
    return 0


@config_app.command(name="set")
def set_value(name: str, value: str, *, config: Path = Path(CONFIG_NAME)) -> int:
    """Set one setting in lary.yaml.

    Args:
        name: Variable, such as DATA_DIR.
        value: Its value; a relative path starts from the file's folder.
        config: File to change.
    """
    set_config(config, name, value)
    print(f"{config}: {name} = {value}")
    return 0
