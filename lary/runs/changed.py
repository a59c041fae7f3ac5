"""Latents of frames that were changed before the encoder saw them, for the controls of frames.

Where a model encodes each frame by itself, a static pair or another order is made of its
latents. One that mixes its frames, such as a latent action model, has to see the changed
frames: they are a table of their own, with the source in place of the target, or the
frames in another order, and are extracted like any other into ``$LARY_LA_DIR/controls/<control>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lary.configs import ExtractConfig, ProbeControl
from lary.data.spec import DATASETS
from lary.data.splits import find_table
from lary.data.tables import INDEX_COLUMN, MEDIA_COLUMNS, SampleTable, read_table, write_csv
from lary.latents.ref import TABLE_FOLDER, LatentsRef, SplitLatents, find_latent_table, open_latents
from lary.runs.extract import ExtractReport, extract
from lary.settings import Settings
from lary.types import BenchmarkProtocol, LaryError, UsageError

CHANGED = "changed"
"""The entry of a store's facts that names the control whose frames its latents were encoded from."""

FRAME_CONTROLS: tuple[ProbeControl, ...] = ("static-pair", "shuffled-order")
"""Controls that change the frames that the encoder sees, not the targets of the probe."""

SEED = 0
"""Seed of the orders of frames; the probes of all seeds of a run see the same orders."""


def separate(split: SplitLatents, protocol: BenchmarkProtocol) -> bool:
    """Whether the latents hold one step per frame; under ``paper`` some encoders mix the frames even then."""
    return protocol == "corrected" and len(split.source.shape) == 3 and split.source.shape[0] == frame_count(split)


def frame_count(split: SplitLatents) -> int:
    """How many frames the first sample has."""
    return len(split.table[0].frame_index) or len(split.table[0].media)


def place_of(settings: Settings, control: ProbeControl) -> Settings:
    """Settings by which the changed frames are extracted and found."""
    root = str(settings.path("LARY_LA_DIR") / "controls" / control)
    items = dict(settings.items)
    for name in ("LARY_ROOT", "LARY_LA_DIR"):
        items[name] = replace(items[name], value=root, origin=f"--control {control}")
    return Settings(items, settings.config_file)


def extract_changed(config: ExtractConfig, control: ProbeControl, settings: Settings) -> ExtractReport | None:
    """Extract a split, whose own latents are there, from changed frames; None where those latents hold each frame.

    Raises:
        UsageError, LaryError: as `extract`.
    """
    dataset = DATASETS.get(config.dataset)
    if separate(open_latents(settings, LatentsRef.of(config)), config.protocol):
        return None
    moved = place_of(settings, control)
    source = config.input or find_table(dataset, config.split, settings.path("LARY_ROOT"))
    table = read_table(dataset, config.split, path=source, data_dir=settings.path("DATA_DIR"), limit=config.limit)
    path = moved.path("LARY_ROOT") / TABLE_FOLDER / f"{dataset.name}_metadata_{config.split}.csv"
    write_csv(path, list(table.frame.columns), list(changed_rows(table, control)))
    return extract(replace(config, input=path), moved)


def changed_rows(table: SampleTable, control: ProbeControl) -> Iterator[list[str]]:
    """The rows of a table with the source in place of all frames, or with frames in an order drawn for each row."""
    columns, pair = list(table.frame.columns), table.spec.media == "pair"
    at = [columns.index(name) for name in (MEDIA_COLUMNS["pair"] if pair else (INDEX_COLUMN,))]
    draw = np.random.default_rng(SEED)
    for row in table.frame.to_numpy(dtype=object).tolist():
        frames = [row[place] for place in at] if pair else row[at[0]].split(",")
        order = draw.permutation(len(frames)) if control == "shuffled-order" else np.zeros(len(frames), dtype=np.int64)
        changed = [frames[place] for place in order]
        for place, cell in zip(at, changed if pair else [",".join(changed)], strict=True):
            row[place] = cell
        yield row


def open_changed(settings: Settings, split: SplitLatents, ref: LatentsRef) -> SplitLatents:
    """The samples of a split with their latents from the frames that the control of `ref` changed.

    Raises:
        UsageError: they were not extracted.
        LaryError: they can't be read, or were made of another table.
    """
    if find_latent_table(settings, ref) is None:
        shape = split.source.shape
        held = f"{shape[0]} steps" if len(shape) == 3 else "no steps"
        raise UsageError(
            f"--control {ref.control}: the latents of '{ref.model}' (protocol {ref.protocol}) hold {held} for "
            f"{frame_count(split)} frames, so frames can't be exchanged after extraction, and there are no latents of "
            f"changed frames of {ref.dataset} {ref.split}. Run 'lary controls', or 'lary run' with this option: they "
            "encode the changed frames."
        )
    other = open_latents(settings, ref)
    places = {row: place for place, row in enumerate(other.table.frame.index.tolist())}
    rows = split.table.frame.index.tolist()
    kept = [position for position, row in enumerate(rows) if row in places]
    own = split if len(kept) == len(rows) else split.take(kept)
    theirs = other.take([places[rows[position]] for position in kept])
    columns = MEDIA_COLUMNS[split.table.spec.media]
    first = own.table.frame[columns[0]].to_numpy()
    if not kept or not np.logical_or.reduce([first == theirs.table.frame[name].to_numpy() for name in columns]).all():
        raise LaryError(
            f"{other.table.path} was made of another table than {split.table.path}: run 'lary controls' again."
        )
    return replace(own, source=theirs.source, store={**other.store, CHANGED: ref.control}, folder=other.folder)
