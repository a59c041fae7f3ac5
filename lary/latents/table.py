"""Latents of a split as probes see them: its samples and random access to their tokens.

Reads the tables that ``lary extract`` writes and those of an earlier extraction by the published code, whose
``la_path`` may be a bare file name and whose media paths may lack ``images/`` and ``actions/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lary import paths
from lary.data.samples import SampleTable, read_table
from lary.data.spec import DatasetSpec
from lary.fileio import inside, read_json
from lary.latents.npz import NpzSource, read_stamp
from lary.latents.store import MANIFEST, StoredLatents
from lary.runtime import log
from lary.settings import Settings
from lary.types import BenchmarkProtocol, LaryError, UsageError


@dataclass(frozen=True)
class SplitLatents:
    """The samples of one split that have latents, in table order, and their tokens.

    Attributes:
        store: the manifest of the store, or a note that another program made the latents.
        left_out: how many rows of the table have no latents, or were taken out.
        folder: of the store.
    """

    table: SampleTable
    source: StoredLatents
    store: dict[str, Any]
    left_out: int
    folder: Path

    def take(self, positions: Sequence[int]) -> SplitLatents:
        """Some of the samples; the others count as left out."""
        left_out = self.left_out + len(self.table) - len(positions)
        return replace(
            self, table=self.table.take(positions), source=self.source.take(positions), left_out=left_out
        )  # fmt: skip


def find_latent_table(
    settings: Settings, dataset: DatasetSpec, split: str, model: str, protocol: BenchmarkProtocol, latent: str | None,
    weights: str | None = None,
) -> Path | None:  # fmt: skip
    """The table of an extraction, or None. Under ``paper`` the published file name is taken too."""
    tag = paths.tagged(model, protocol, latent, weights)
    for name in (tag, model) if protocol == "paper" and not latent and not weights else (tag,):
        path = paths.latent_table(settings, dataset.name, split, dataset.media, dataset.stride, name)
        if path.is_file():
            return path
    return None


def open_latents(
    settings: Settings,
    dataset: DatasetSpec,
    split: str,
    model: str,
    protocol: BenchmarkProtocol,
    latent: str | None = None,
    weights: str | None = None,
) -> SplitLatents:
    """Open the latents of a split.

    Raises:
        UsageError: there is no table, or its latents belong to another model or protocol.
        LaryError: a latent file that the table names is missing or torn, or no row has latents.
    """
    tag = paths.tagged(model, protocol, latent, weights)
    file = find_latent_table(settings, dataset, split, model, protocol, latent, weights)
    if file is None:
        wanted = paths.latent_table(settings, dataset.name, split, dataset.media, dataset.stride, tag)
        option = "" if protocol == "corrected" else f" --protocol {protocol}"
        option += f" --latent {latent}" if latent else ""
        option += f" --weights {weights}" if weights else ""
        raise UsageError(
            f"There are no latents of '{model}' for {dataset.name} {split}: {wanted} does not exist. Run "
            f"'lary extract --model {model} --dataset {dataset.name} --split {split}{option}' first."
        )
    table = read_table(dataset, split, path=file, data_dir=settings.path("DATA_DIR"))
    if "la_path" not in table.frame.columns:
        raise UsageError(f"{file} has no column la_path: it is no table of an extraction.")
    entries = table.frame["la_path"].tolist()
    rows = [row for row, entry in enumerate(entries) if entry]
    if not rows:
        raise LaryError(f"No row of {file} has latents: look at the failures file of the extraction.")
    if len(rows) < len(entries):
        left_out = len(entries) - len(rows)
        log.warning("%s: %d of %d rows have no latents and are left out", file.name, left_out, len(entries))
    files = [resolve_latents(settings, dataset, split, tag, entries[row], file) for row in rows]
    store = check_origin(files, file, model, protocol)
    return SplitLatents(table.take(rows), NpzSource(files), store, len(entries) - len(rows), files[0].parent)


def resolve_latents(settings: Settings, dataset: DatasetSpec, split: str, tag: str, entry: str, table: Path) -> Path:
    """The file that a ``la_path`` cell names: under LARY_LA_DIR, or a bare name in the model's folder.

    Raises:
        UsageError: the path leaves LARY_LA_DIR, or names the folder of another model.
    """
    root = settings.path("LARY_LA_DIR")
    path = inside(root, entry)
    parts = PurePosixPath(entry).parts
    if len(parts) > 1:
        if tag not in parts[:-1] and tag.split("@")[0] not in parts[:-1]:
            raise UsageError(f"{table}: la_path '{entry}' holds latents of another model than '{tag}'.")
        return path
    folders = dict.fromkeys((tag, tag.split("@")[0]))
    for folder in folders:
        for place in (
            root / dataset.name / split / folder, root / dataset.name / f"stride_{dataset.stride}" / split / folder
        ):  # fmt: skip
            if (place / entry).exists():
                return place / entry
    return paths.latent_folder(settings, dataset.name, split, tag) / entry


def check_origin(files: list[Path], table: Path, model: str, protocol: BenchmarkProtocol) -> dict[str, Any]:
    """Who made these latents: the manifest of their store, or a note that another program did.

    Raises:
        UsageError: the stamp or the manifest names another model or protocol.
        LaryError: the first missing files, and how many there are.
    """
    absent = [file for file in files if not file.exists()]
    if absent:
        listed = "\n  ".join(str(file) for file in absent[:10])
        raise LaryError(
            f"{len(absent)} of {len(files)} latent files of {table} are missing; extract again. "
            f"The first are\n  {listed}"
        )
    stamp = read_stamp(files[0])
    if stamp is None:
        return {"origin": "made by another program: no identity to check"}
    if stamp.model != model:
        raise UsageError(f"{table} holds latents of '{stamp.model}', not of '{model}': extract '{model}' again.")
    manifest = files[0].parent / MANIFEST
    found = read_json(manifest, "store manifest") if manifest.exists() else {}
    identity = found.get("identity", {})
    if identity.get("protocol", protocol) != protocol:
        raise UsageError(
            f"{table} holds latents of protocol '{identity['protocol']}', asked for is '{protocol}': "
            f"extract with --protocol {protocol}."
        )
    return {"origin": "lary extract", "stamp": asdict(stamp), **found}
