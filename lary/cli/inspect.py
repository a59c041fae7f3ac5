"""The commands that inspect: settings, models, data sets, latents, runs, machine."""

import os
import shutil
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lary import configs
from lary.configs import Paths, add_help
from lary.registry import load_plugin
from lary.settings import CONFIG_NAME, VARIABLES, init_config, set_config
from lary.types import UsageError


def doctor(*, paths: Paths = Paths()) -> int:
    settings = paths.settings()
    import torch

    from lary.models.overview import weights_state
    from lary.models.spec import MODELS
    from lary.runtime import memory_bytes, usable_cores

    cores = f"{usable_cores()} of {os.cpu_count()} cores"
    memory = memory_bytes() / 1e9
    lines = [(False, "cpu", f"{cores}, {memory:.1f} GB of memory")]
    lines.append((False, "torch", f"{torch.__version__}, built for CUDA {torch.version.cuda}"))
    for index in range(torch.cuda.device_count()):
        try:  # one may be broken, or taken
            free, total = (size / 1e9 for size in torch.cuda.mem_get_info(index))
            works = float((torch.ones(8, device=f"cuda:{index}") * 2).sum()) == 16
            text = f"{torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GB free"
        except RuntimeError as error:
            works = False
            text = f"can't be used: {str(error).partition(chr(10))[0]}"
        lines.append((not works, f"cuda:{index}", text))
    if torch.backends.mps.is_available():
        lines.append((False, "mps", "Metal: pass --device mps"))
    for name, value in settings.values().items():
        path = Path(value)
        origin = settings.items[name].origin
        folder = VARIABLES[name].folder
        broken = path.exists() and (not os.access(path, os.R_OK) or (folder and not path.is_dir()))
        if broken:
            text = "can't be used"
        elif path.is_dir():
            text = f"folder, {shutil.disk_usage(path).free / 1e9:.1f} GB free"
        elif path.exists():
            text = "file"
        elif not folder and value.count("/") == 1 and not path.is_absolute():
            text = "no file here: taken for a hub id"
        else:  # commands make the folders that they write to
            broken = name not in ("LARY_LA_DIR", "LARY_LOG_DIR") and origin != "default"
            text = "does not exist"
        lines.append((broken, name, f"{value} ({origin}): {text}"))
    absent = [model.name for model in MODELS if not weights_state(model, settings.values())[0]]
    text = f"not on this machine: {', '.join(absent)}; 'lary models KEY' prints what to set" if absent else "found"
    lines.append((False, "weights", text))
    for broken, name, text in lines:
        print(f"{'!' if broken else ' '} {name:24} {text}")
    count = sum(broken for broken, *_ in lines)
    print(f"{count} broken" if count else "Nothing is broken.")
    return min(count, 1)


def models(key: str | None = None, *, paths: Paths = Paths()) -> None:
    values = paths.settings().values()
    from lary.models.overview import model_text, models_table
    from lary.models.spec import MODELS

    print(model_text(MODELS.get(key), values) if key else models_table(values))


def datasets(key: str | None = None, *, paths: Paths = Paths()) -> None:
    paths.settings()
    from lary.data.spec import DATASETS, dataset_text, datasets_table

    print(dataset_text(DATASETS.get(key)) if key else datasets_table())


def check_model(key: str, config: configs.CheckModelConfig = configs.CheckModelConfig(), paths: Paths = Paths()) -> int:
    values = paths.settings().values()
    file, colon, name = key.rpartition(":")
    if colon and file.endswith(".py"):
        load_plugin(file)
        key = name
    elif key.endswith(".py"):
        raise UsageError(f"check-model {key}: name the model that the file registers, as {key}:NAME.")
    from lary.models import overview
    from lary.models.spec import MODELS

    check = overview.check_model(MODELS.get(key), config, values)
    print(check.text())
    return 1 if check.problems else 0


def diagnose(config: configs.DiagnoseConfig, paths: Paths = Paths()) -> None:
    from lary.results.diagnostics import diagnosis_text

    found, file = paths.call("lary.results.diagnostics:diagnose_split", config)
    print(diagnosis_text(found), f"Written to {file}", sep="\n")


def analyze(
    kind: configs.AnalysisKind = "all",
    *,
    config: configs.AnalyzeConfig = configs.AnalyzeConfig(),
    paths: Paths = Paths(),
) -> None:
    files, left_out = paths.call("lary.results.analyses:make_analysis", kind, config)
    print(*files, *(f"left out: {reason}" for reason in left_out), sep="\n")


def report(folder: Path | None = None, *, out: Path | None = None, paths: Paths = Paths()) -> None:
    from lary.results.report import write_report

    print(write_report(folder or paths.settings().path("LARY_LOG_DIR"), out))


def table(
    folder: Path | None = None,
    *,
    format: configs.TableFormat = "markdown",
    published: bool = False,
    out: Path | None = None,
    paths: Paths = Paths(),
) -> None:
    from lary.files import write_text
    from lary.results.table import table_text

    text = table_text(folder or paths.settings().path("LARY_LOG_DIR"), format, published=published)
    print(text, end="") if out is None else write_text(out, text)


def export_file(
    run: Path, /, *more: Path, out: Annotated[Path, Parameter(alias="-o")], predictions: bool = True
) -> None:
    from lary.results.submission import export_runs

    names = export_runs((run, *more), out, predictions=predictions)
    print(*names, f"Written to {out}", sep="\n")


def board(folder: Path, *, out: Path = Path("board")) -> int:
    from lary.results.submission import build_board

    text, refused = build_board(folder, out)
    print(text, f"Written to {out}", sep="\n")
    return min(refused, 1)


def compare(*results: Path, role: Literal["seen", "unseen"] = "seen", seed: int = 0, json: Path | None = None) -> None:
    from lary.files import write_json
    from lary.results.compare import compare as work

    found = work(*results, role=role, seed=seed)
    print(found.text())
    if json is not None:
        rows = [
            {
                "other": str(each.other.folder),
                "gain": each.gain.model_dump(),
                "p": each.p,
                "single": each.single,
                "samples": each.samples,
                "groups": each.groups,
            }
            for each in found.differences
        ]
        write_json(json, {"first": str(found.first.folder), "role": role, "differences": rows})


def verify_runs(run: Path, /, *more: Path) -> int:
    from lary.results.verify import verify_run

    found = [verify_run(place) for place in (run, *more)]
    print(*(text for text, _ in found), sep="\n")
    return int(any(wrong for _, wrong in found))


def schema(*, out: Path | None = None) -> None:
    from lary.files import write_text
    from lary.results.record import schema_text

    print(schema_text(), end="") if out is None else write_text(out, schema_text())


def info(config: configs.LatentsConfig, paths: Paths = Paths()) -> None:
    print(paths.call("lary.latents.tools:describe_store", config))


def verify(config: configs.LatentsConfig, paths: Paths = Paths()) -> int:
    rows, problems = paths.call("lary.latents.tools:verify_store", config)
    print(*problems, f"{rows} rows read, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


def convert(config: configs.ConvertConfig, paths: Paths = Paths()) -> None:
    print(f"{paths.call('lary.latents.tools:convert_store', config)} rows in {config.store}")


def export(config: configs.LatentsConfig, *, out: Path, rows: str | None = None, paths: Paths = Paths()) -> None:
    print(f"{out}: {paths.call('lary.latents.tools:export_latents', config, out=out, rows=rows)} samples")


def show(*, paths: Paths = Paths()) -> None:
    for item in paths.settings().items.values():
        print(f"{item.name:24} {item.value or '-':40} {item.origin}")


def init(file: Path = Path(CONFIG_NAME), *, overwrite: bool = False) -> None:
    print(f"Wrote {init_config(file, overwrite=overwrite)}")


def set_value(name: str, value: str, *, config: Path = Path(CONFIG_NAME)) -> None:
    set_config(config, name, value)
    print(f"{config}: {name} = {value}")


add_help(globals())
