"""The commands ``lary compare``, ``lary controls`` and ``lary schema``: runs against each other and their controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lary.cli.places import ALL_DEFAULT, Places
from lary.configs import ControlsConfig

Star = Parameter(name="*")


def compare(*results: Path, role: Literal["seen", "unseen"] = "seen", seed: int = 0, json: Path | None = None) -> int:
    """Hold the first result against each of the others: paired difference, interval, p value corrected by Holm.

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


def controls(config: Annotated[ControlsConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Run a model with its controls and state its margin over each."""
    places.load_plugins()
    from lary.runs.controls import run_controls

    print(run_controls(config, places.settings(), plugins=places.plugin).text())
    return 0
