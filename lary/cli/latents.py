"""The commands ``lary latents``: what extraction left on disk, told, checked, turned into other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from lary.cli.places import ALL_DEFAULT, Places
from lary.configs import LatentDtype, LatentsConfig, StoreKind

Star = Parameter(name="*")

latents_app = App(
    name="latents", help="Inspect, verify, convert and export extracted latents.", help_format="plaintext"
)


@latents_app.command
def info(config: Annotated[LatentsConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Tell what a store is: identity, kind, rows, bytes, shape, and which samples of its table it lacks."""
    places.load_plugins()
    from lary.latents.tools import info as run

    print(run(config, places.settings()).text())
    return 0


@latents_app.command
def verify(config: Annotated[LatentsConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Read every row of a store: checksums, finite values, index. Names what is wrong; exit code 1 then."""
    places.load_plugins()
    from lary.latents.tools import verify as run

    rows, problems = run(config, places.settings())
    for problem in problems:
        print(problem)
    print(f"{rows} rows read, {len(problems)} problems")
    return 1 if problems else 0


@latents_app.command
def convert(
    config: Annotated[LatentsConfig, Star],
    *,
    store: StoreKind,
    dtype: LatentDtype | None = None,
    shard_rows: int = 1024,
    places: Places = ALL_DEFAULT,
) -> int:
    """Turn a store into another kind or number format, in its place; its table names the new files.

    Args:
        store: Kind of the new store.
        dtype: Number format of the new store; default: that of the old one.
        shard_rows: Rows per shard.
    """
    places.load_plugins()
    from lary.latents.tools import convert as run

    folder, rows = run(config, places.settings(), kind=store, dtype=dtype, shard_rows=shard_rows)
    print(f"{folder}: {rows} rows in {store}")
    return 0


@latents_app.command
def export(
    config: Annotated[LatentsConfig, Star],
    *,
    out: Path,
    rows: str | None = None,
    ids: str | None = None,
    places: Places = ALL_DEFAULT,
) -> int:
    """Write tokens to one file for other tools: .npy, .npz, .parquet or .safetensors.

    Args:
        out: File to write; its ending decides the form.
        rows: Rows of the table from 1, such as 1-100,205; default: all.
        ids: Sample ids with commas, or a text file with one in each line.
    """
    places.load_plugins()
    from lary.latents.export import export as run

    print(f"{out}: {run(config, places.settings(), out, rows=rows, ids=ids)} samples")
    return 0
