"""Tools for stores after extraction: describe, verify, convert, export."""

import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from lary.arrays import Array
from lary.configs import ConvertConfig, LatentsConfig
from lary.data.spec import DATASETS
from lary.data.splits import find_table
from lary.data.tables import read_table
from lary.files import atomic_write, remove_torn, write_json
from lary.latents.ref import KINDS, LatentsRef, SplitLatents, check_format, open_latents
from lary.latents.sources import OpenShard, ShardHeader, read_array, read_stamp, read_stamps, read_tokens, scan_shards
from lary.latents.store import INDEX, MANIFEST, NPZ, SHARDS, LatentStore, StoreIdentity, read_manifest
from lary.latents.writers import checksum_of, rows_in
from lary.locks import locked
from lary.runtime import in_threads, progress
from lary.settings import Settings
from lary.types import JsonDict, LaryError, MediaError, UsageError

THREADS = 4


@dataclass(frozen=True)
class _Found:
    """A store on disk; without a manifest, ``.npz`` files of another program."""

    folder: Path
    manifest: JsonDict
    kind: str
    headers: list[ShardHeader]
    problems: list[str]

    def held(self) -> dict[int, tuple[str, Path]]:
        """Sample id and file by row, from the newest shard that holds it."""
        found: dict[int, tuple[str, Path]] = {}
        if self.kind == "npz":
            names = rows_in(self.folder)
            stamps = read_stamps(self.folder, list(names.values()))
            for (row, name), stamp in zip(names.items(), stamps, strict=True):
                found[row] = (stamp.sample if stamp else "", self.folder / name)
        for header in self.headers:
            found |= {row: (sample, header.path) for row, (sample, _) in header.positions().items()}
        return dict(sorted(found.items()))


def _find(settings: Settings, config: LatentsConfig) -> _Found:
    """The store of a split. Raises UsageError, or LaryError for its manifest."""
    DATASETS.get(config.dataset).split(config.split)
    folder = LatentsRef.of(config).folder(settings)
    if not folder.is_dir():
        what = f"'{config.model}' for {config.dataset} {config.split}"
        raise UsageError(f"There are no latents of {what}: {folder} does not exist.")
    manifest = read_manifest(folder)
    kind = manifest.get("store", "npz")
    if kind not in KINDS:
        raise LaryError(f"{folder / MANIFEST} names the kind {kind!r}, which this lary doesn't know: update lary.")
    problems: list[str] = []
    shards = list(scan_shards(folder, manifest.get("key"), problems)) if kind == "shards" else []
    return _Found(folder, manifest, kind, shards, problems)


def describe_store(config: LatentsConfig, settings: Settings) -> str:
    store = _find(settings, config)
    held, problems, tokens = store.held(), list(store.problems), "unknown"
    files = {file for _, file in held.values()}
    try:
        first: Any = store.headers[0] if store.headers else read_tokens(next(iter(held.values()))[1])
        tokens = f"{' x '.join(map(str, first.shape))} {first.dtype}"
    except MediaError as error:
        problems.append(str(error))
    except StopIteration:  # it is empty
        pass
    facts = {"kind": f"{store.kind}, {len(files)} files, {sum(file.stat().st_size for file in files)} bytes"}
    facts |= store.manifest.get("identity") or {"origin": "made by another program: no identity to check"}
    facts |= {"rows": str(len(held)), "tokens": tokens, "missing": "unknown: the table isn't here"}
    try:
        dataset = DATASETS.get(config.dataset)
        source = find_table(dataset, config.split, settings.path("LARY_ROOT"))
        table = read_table(dataset, config.split, path=source, data_dir=Path())
        absent = [name for row, name in enumerate(table.ids) if held.get(row, (None,))[0] not in ("", name)]
        shown = [f": {', '.join(absent[:10])}"] * bool(absent) + [", ..."] * (len(absent) > 10)
        facts["missing"] = str(len(absent)) + "".join(shown)
    except LaryError:
        pass
    lines = [f"  {name:11} {value}" for name, value in facts.items() if value not in ("", None)]
    return "\n".join([str(store.folder), *lines, *(f"  damaged     {problem}" for problem in problems)])


def verify_store(config: LatentsConfig, settings: Settings) -> tuple[int, list[str]]:
    """Check checksums, stamps and finite values of all rows; returns their number, and what is wrong.

    Raises UsageError, LaryError.
    """
    store = _find(settings, config)
    problems, key = list(store.problems), store.manifest.get("key")
    checks = [(len(header.samples), partial(_shard_problems, header)) for header in store.headers]
    if store.kind == "npz":
        checks = [(1, partial(_npz_problems, store.folder / name, key)) for name in rows_in(store.folder).values()]
    total = sum(count for count, _ in checks)
    with progress(total, f"verifying {store.folder.name}") as bar:
        found = in_threads(lambda check: check[1](), checks, THREADS)
        for (count, _), wrong in zip(checks, found, strict=True):
            problems += wrong
            bar.advance(count)
    return total, problems


def _shard_problems(header: ShardHeader) -> list[str]:
    found = []
    try:
        shard = OpenShard(header)
        for position, sample in enumerate(header.samples):
            stored, codes = shard.row(position)
            row = header.rows[position] + 1
            where = f"{header.path}, row {position} (row {row} of the table, sample {sample})"
            if checksum_of(stored, codes) != int(header.checksums[position]):
                found.append(f"{where}: its bytes are not those that were written.")
            elif not _all_finite(stored, header.dtype):
                found.append(f"{where}: it holds values that are not finite.")
    except LaryError as error:
        found.append(str(error))
    return found


def _npz_problems(file: Path, key: str | None) -> list[str]:
    try:
        tokens, _ = read_tokens(file), read_array(file, "indices")
    except MediaError as error:
        return [str(error)]
    if not _all_finite(tokens, str(tokens.dtype)):
        return [f"{file} holds values that are not finite."]
    stamp = read_stamp(file)
    own = key is None or (stamp is not None and stamp.store == key)
    return [] if own else [f"{file} belongs to another store."]


def _all_finite(stored: Array, dtype: str) -> bool:
    """Whether all numbers are finite; bfloat16 comes as its bits in uint16."""
    if dtype == "bfloat16":  # an exponent of ones is infinity or NaN
        return bool(((stored & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(stored).all())


# Convert and export


def convert_store(config: ConvertConfig, settings: Settings) -> int:
    """Convert a store to the other kind, in its folder; returns its row count.

    The old files are removed once the manifest and the table are of the new
    kind. It resumes after a stop at any point. Raises UsageError, LaryError.
    """
    config.check_counts("shard_rows")
    ref, folder = LatentsRef.of(config), _find(settings, config).folder
    with locked(folder):
        store, file = _find(settings, config), ref.table(settings)
        try:
            identity = StoreIdentity(**store.manifest["identity"])
        except (KeyError, TypeError):
            raise UsageError(
                f"{folder} has no identity, since another program made its latents: extract them."
            ) from None
        wanted = replace(identity, dtype=config.dtype or identity.dtype)
        check_format(config.store, wanted.dtype)
        if wanted != identity and (store.kind == config.store or identity.dtype != "float32"):
            raise UsageError(
                f"--dtype {wanted.dtype}: {folder} holds {identity.dtype} in {store.kind}; only float32 is converted, "
                "and only into the other kind. Extract again with --overwrite."
            )
        if not file.is_file():
            raise UsageError(f"There is no table {file}: run 'lary extract' first.")
        table = read_table(ref.spec, ref.split, path=file, data_dir=Path())
        absent = {row for row, entry in enumerate(table.frame["la_path"]) if not entry}
        new = KINDS[config.store](folder, wanted, config.shard_rows)
        if store.kind != config.store:
            if len(store.held()) > len(table) - len(absent):
                raise UsageError(
                    f"{file} names fewer rows than {folder} holds: run 'lary extract' without --limit first."
                )
            _copy_rows(open_latents(settings, ref), new, set(new.missing(table)))
            facts = {"key": wanted.key, "identity": asdict(wanted), "store": config.store}
            units = {"unit_rows": config.shard_rows, "batch_size": 1}
            write_json(folder / MANIFEST, store.manifest | facts | units)
        if lost := set(new.missing(table)) - absent:
            raise LaryError(f"{len(lost)} rows of {file} are missing in {folder}: run 'lary extract' first.")
        new.write_table(table, file, ref.latent_root(settings), absent)
        remove_torn(folder)
        for old in (*folder.glob(NPZ if config.store == "shards" else SHARDS), folder / INDEX):
            old.unlink(missing_ok=True)
        return len(table) - len(absent)


def _copy_rows(latents: SplitLatents, new: LatentStore, lacking: set[int]) -> None:
    pending = [position for position, own in enumerate(latents.table) if own.row in lacking]
    with progress(len(pending), f"converting {new.folder.name}") as bar:
        for unit, members in groupby(pending, lambda position: latents.table[position].row // new.unit_rows):
            with new.writer(unit) as write:
                for position in members:
                    own, (codes,) = latents.table[position], latents.source.codes([position])
                    try:
                        write(own.row, own.id, latents.source.read([position])[0], codes)
                    except MediaError as error:
                        raise LaryError(f"Row {own.row + 1} of {latents.table.path}: {error}") from error
                    bar.advance(1)


def export_latents(config: LatentsConfig, settings: Settings, out: Path, *, rows: str | None = None) -> int:
    """Write ``tokens``, ``rows`` and ``samples`` to one ``.npz`` file.

    Tokens are (n, *shape) float32, all in memory at once; those written
    count from 0, `rows` to choose from 1, such as 1-100,205. Returns n.
    Raises UsageError for another ending or rows without latents, LaryError.
    """
    if out.suffix != ".npz":
        raise UsageError(f"{out}: expected a file that ends in .npz.")
    latents = open_latents(settings, LatentsRef.of(config))
    if rows is not None:
        latents = latents.take(_positions(latents, rows))
    table = latents.table
    tokens = np.asarray(latents.source.read(range(len(table))), dtype=np.float32)
    with atomic_write(out) as stream:
        np.savez(stream, tokens=tokens, rows=list(table.rows), samples=table.ids)
    return len(table)


def _positions(latents: SplitLatents, rows: str) -> list[int]:
    """The positions of rows such as 1-100,205, ascending. Raises UsageError."""
    there = {row + 1: position for position, row in enumerate(latents.table.rows)}
    chosen = set()
    for part in rows.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None:
            raise UsageError(f"--rows: '{part[:80]}' is no row or range such as 1-100.")
        for number in range(int(match[1]), int(match[2] or match[1]) + 1):
            if number not in there:  # refused at once: a range may have a thousand million rows
                raise UsageError(f"--rows {rows[:80]}: row {number} has no latents.")
            chosen.add(there[number])
    return sorted(chosen)
