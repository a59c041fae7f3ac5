"""Diagnostics of latents: ranks, channels and codes of constructed data, by hand and by a library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.latents.sources import Stamp
from lary.latents.writers import write_latents
from lary.results.diagnostics import Scatter, code_use
from tests.helpers import printed
from tests.tree import write_table

SAMPLES = 40


def test_ranks_of_even_and_of_constant_rows() -> None:
    """Those of other rows are golden values, which the size of a batch does not change."""
    even, flat = Scatter(6), Scatter(6)
    even.add(np.vstack([np.eye(6)[:3], -np.eye(6)[:3]]))
    assert even.ranks() == pytest.approx({"effective_rank": 3.0, "participation_ratio": 3.0, "limit": 5})
    flat.add(np.ones((5, 6)))
    assert flat.ranks() == {"effective_rank": 0.0, "participation_ratio": 0.0, "limit": 4}


def write_store(root: Path, tokens: np.ndarray) -> None:
    """Latents (n, 2, 6) of pairs, five in each of eight episodes, with two codes each."""
    rows = []
    for row, own in enumerate(tokens.astype(np.float32)):
        frames = [f"images/ep_{row // 5}/frame_{row + step:06d}.png" for step in range(2)]
        latent = f"calvin/val/lapa/latent_action_{row:08d}.npz"
        rows.append({"src_img": frames[0], "tgt_img": frames[1], "action": f"actions/{row}.npy", "la_path": latent})
        write_latents(root / "la" / latent, own, np.array([row % 2, 3 + row // 2 % 2 * 2]), Stamp("", "", "lapa"))
    write_table(root / "data" / "val_la_calvin_5_lapa.csv", rows)


def run(root: Path, *options: str, **expected: Any) -> None:
    words = ("diagnose", "--model", "lapa", "--dataset", "calvin", f"--lary-la-dir={root / 'la'}")
    printed(*words, *options, root=root, **expected)


def numbers(root: Path, *options: str) -> Any:
    run(root, f"--json={root / 'out.json'}", *options)
    return json.loads((root / "out.json").read_text())


def test_diagnose_command_reads_a_store_in_batches(tmp_path: Path) -> None:
    tokens = np.random.default_rng(4).normal(size=(SAMPLES, 2, 6))
    tokens[..., 2] = 7.0
    tokens[..., 3:5] *= [1e-4, 0]
    write_store(tmp_path, tokens)
    first = "calvin val with lapa (corrected): 40 samples of 8 episodes, tokens 2 x 6"
    run(tmp_path, has=[first, "6, 2 dead", "4 of 8 (50.0 %) used, perplexity 4.00 (2.00 at a single place)"])
    found = json.loads((tmp_path / "logs" / "diagnostics" / "calvin" / "val" / "lapa.json").read_text())
    assert (found["channels"]["dead"], found["tokens"]["limit"]) == ([2, 4], 6)
    assert found["codes"]["counts"] == {"0": 20, "1": 20, "3": 20, "5": 20}
    few = numbers(tmp_path, "--rows", "5")  # of evenly spaced rows
    assert (numbers(tmp_path), few["samples"], few["groups"]) == (found, 5, 5)
    assert numbers(tmp_path, "--batch-size", "9")["tokens"] == pytest.approx(found["tokens"], rel=1e-9)
    by_hand: Any = code_use({0: np.array([1, 4]), 3: np.array([1, 0]), 7: np.array([2, 0])}, None)
    assert by_hand["perplexity_per_place"] == pytest.approx((2**1.5 + 1) / 2)


def test_latents_that_are_not_finite_name_their_sample(tmp_path: Path) -> None:
    write_store(tmp_path, np.where(np.arange(SAMPLES)[:, None, None] == 3, np.nan, np.ones((SAMPLES, 2, 6))))
    run(tmp_path, code=1, has=["images/ep_0/frame_000004.png) hold NaN or infinity"])
