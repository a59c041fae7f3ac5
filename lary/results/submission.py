"""``lary export`` and ``lary board``: results of a model as one file, and a site of many such files.

A file is a ZIP archive: ``submission.json``, in ``runs/0``, ``runs/1`` ... a
``result.json`` and the arrays that ``lary verify`` needs, in ``plugins`` the
model's source. A site trusts nothing in it: metrics and digests are computed
again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lary.data.archives import Limits, unpack
from lary.files import atomic_write, csv_text, json_text, read_json, read_limited, write_text
from lary.registry import aligned
from lary.results.figures import no_formula
from lary.results.folder import FinishedRun, find_results, finished_run
from lary.results.record import FILE_NAME, EvalResult, seal_holds, write_result
from lary.results.report import write_report
from lary.results.verify import verify_run
from lary.types import LaryError, UsageError

FORMAT = 1
MANIFEST = "submission.json"
ARRAYS = ("predictions.npz", "actions.npz")
LIMITS = Limits(members=10_000, total_bytes=1 << 34)
LARGEST_PLUGIN = 1 << 20
LONGEST_NAME = 100
MACHINE_PATH = re.compile(r"""(?<![\w.~-])(?:~|[A-Za-z]:)?[/\\](?:[^/\\'"\s,]+[/\\])*(?=[^/\\'"\s,]*)""")
"""The folders of an absolute path in a text; the last part stays."""


def export_runs(places: Sequence[Path], out: Path, *, predictions: bool = True) -> list[str]:
    """Write finished runs of one model as a file; returns the names in it.

    Raises UsageError for several models or another kind of file, LaryError for a damaged run.
    """
    runs = [finished_run(place) for place in places]
    models = sorted({run.result.model.name for run in runs})
    if len(models) > 1:
        raise UsageError(f"The runs are of {', '.join(models)}: export one model at a time.")
    if out.suffix != ".zip":
        raise UsageError(f"-o {out}: the file is an archive, so its name ends in .zip.")
    content: dict[str, bytes] = {}
    for number, run in enumerate(runs):
        names = [name for name in ARRAYS if name in run.result.files] if predictions else []
        arrays = {name: run.file(name).read_bytes() for name in names}
        content |= {f"runs/{number}/{name}": data for name, data in arrays.items()}
        with tempfile.TemporaryDirectory() as scratch:
            write_result(file := Path(scratch) / FILE_NAME, portable(run.result, arrays))
            content[f"runs/{number}/{FILE_NAME}"] = file.read_bytes()
        for option, value in itertools.pairwise(run.result.provenance.probe_command):
            if option == "--plugin" and (plugin := Path(value)).is_file():
                content[f"plugins/{plugin.name}"] = read_limited(plugin, LARGEST_PLUGIN)
    facts = {"format": FORMAT, "model": models[0], "runs": len(runs)}
    content = {MANIFEST: json_text(facts).encode(), **content}
    with atomic_write(out) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return list(content)


def portable(result: EvalResult, arrays: dict[str, bytes]) -> EvalResult:
    """A result that names no path of a machine, and no file but its arrays."""
    data = result.model_dump(mode="json")
    for name in ("options_given", "provenance", "model", "warnings", "extra"):
        data[name] = _without_paths(data[name])
    data["files"] = {name: hashlib.sha256(own).hexdigest() for name, own in arrays.items()}
    data["examples"] = [{**each, "pictures": []} for each in data["examples"]]
    return EvalResult.model_validate(data)


def _without_paths(value: Any) -> Any:
    """JSON in which absolute paths are their last part."""
    if isinstance(value, dict):
        return {name: _without_paths(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_without_paths(own) for own in value]
    return MACHINE_PATH.sub("", value) if isinstance(value, str) else value


# The site


def build_board(folder: Path, out: Path) -> tuple[str, int]:
    """Check the submissions of a folder, and write a site of sound ones to `out`.

    Returns a table for a terminal and how many are refused. Raises UsageError without any.
    """
    files = sorted(folder.glob("*.zip"))
    if not files:
        raise UsageError(f"{folder} holds no submission: they are files NAME.zip, written by 'lary export'.")
    runs = out / "runs"
    table = [("submission", "model", "runs", "verified", "refused because")]
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    refused = 0
    for file in files:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            try:
                unpack([file], lambda name: name, Path(scratch), LIMITS)
                found, verified = checked_runs(Path(scratch))
            except LaryError as error:
                refused += 1
                table.append((file.name, "", "", "", str(error).replace(scratch, file.name)))
                continue
            shutil.move(Path(scratch) / "runs", runs / file.stem)
            share = f"{verified} of {len(found)}"
            table.append((file.name, found[0].result.model.name, str(len(found)), share, ""))
    write_text(out / "submissions.csv", csv_text(map(no_formula, row) for row in table))
    if refused < len(files):
        write_report(runs, out / "index.html")
    return "\n".join(aligned(table)), refused


def checked_runs(folder: Path) -> tuple[list[FinishedRun], int]:
    """The runs of a submission, and how many have arrays. Raises LaryError."""
    facts = read_json(folder / MANIFEST, "submission")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise LaryError(f"{folder / MANIFEST} is no submission of format {FORMAT}: export it again.")
    found, broken = find_results(folder / "runs") if (folder / "runs").is_dir() else ([], [])
    if broken:
        raise LaryError(f"{broken[0][0]}: {broken[0][1]}")
    if not found or {run.result.model.name for run in found} != {facts.get("model")}:
        name = json.dumps(facts.get("model"))[:LONGEST_NAME]
        raise LaryError(f"{folder / MANIFEST} names the model {name}, its runs don't.")
    for run in found:
        if run.result.files and (wrong := verify_run(run.folder)[1]):
            raise LaryError(wrong[0])
        if not seal_holds((run.folder / FILE_NAME).read_bytes()):
            raise LaryError(f"{run.folder / FILE_NAME} was changed after it was written: its digest differs.")
    return found, sum(bool(run.result.files) for run in found)
