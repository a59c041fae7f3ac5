"""A small data set of one arm's actions, for tests of targets and statistics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lary.data.spec import ActionSpace, DatasetSpec, LabelSpace, Normalisation, Split
from lary.data.tables import SampleTable, read_table
from tests.tree import write_array

STATISTICS = Normalisation(stats_file="stats.json", command="make them")
SPACE = ActionSpace(dims=("x", "y", "gripper"), horizon=4, normalisation=STATISTICS)
PAIR = DatasetSpec(
    name="two", title="Two", media="pair", target=LabelSpace(("close", "open")), splits={"val": Split("here")},
    licences=(), media_depth=0, group_pattern=r"^(.*?ep_\d+)/",
)  # fmt: skip
ARM = DatasetSpec(
    name="arm", title="Arm", media="pair", target=SPACE, splits={"train": Split("regression/arm")}, licences=(),
    stride=4, media_depth=0, embodiment_column="robot_type",
)  # fmt: skip


def arm_table(folder: Path, chunks: Sequence[Any], robots: Sequence[str], spec: DatasetSpec = ARM) -> SampleTable:
    """A table whose rows have these chunks; None for a missing file."""
    lines = ["src_img,tgt_img,action,robot_type"]
    for row, (chunk, robot) in enumerate(zip(chunks, robots, strict=True)):
        if chunk is not None:
            write_array(folder / f"regression/arm/actions/{row}.npy", chunk)
        lines.append(f"{row}.png,{row}.png,{row}.npy,{robot}")
    (folder / "table.csv").write_text("\n".join(lines))
    return read_table(spec, "train", path=folder / "table.csv", data_dir=folder)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
