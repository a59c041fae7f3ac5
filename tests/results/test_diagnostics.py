"""Diagnostics of latents: ranks, channels and codes of constructed data, by hand and by a library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import DiagnoseConfig
from lary.data.spec import DATASETS
from lary.data.tables import read_table
from lary.latents.ref import SplitLatents
from lary.latents.sources import Stamp
from lary.latents.writers import write_latents
from lary.models.spec import MODELS, ModelSpec
from lary.results.diagnostics import Scatter, code_use, diagnose_latents, diagnosis_text
from lary.types import LaryError
from tests.helpers import Done, lary
from tests.tree import write_table

SAMPLES = 40


@dataclass
class Memory:
    """A source in memory, with codes where it is given some."""

    tokens: np.ndarray
    ids: np.ndarray | None = None
    most: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens.shape[1:]

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        self.most = max(self.most, len(rows))
        return self.tokens[np.asarray(rows)].astype(np.float32)

    def codes(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        return [None if self.ids is None else self.ids[row] for row in rows]


def write_pairs(root: Path) -> Path:
    """A table of pairs, five in each of eight episodes."""
    rows = []
    for row in range(SAMPLES):
        frames = {
            name: f"images/ep_{row // 5}/frame_{row + at:06d}.png" for at, name in enumerate(("src_img", "tgt_img"))
        }
        files = {"action": f"actions/{row}.npy", "la_path": f"calvin/val/lapa/latent_action_{row:08d}.npz"}
        rows.append({**frames, **files})
    path = root / "data" / "val_la_calvin_5_lapa.csv"
    write_table(path, rows)
    return path


def tokens_of(seed: int = 4) -> np.ndarray:
    """Latents (n, 2, 6) whose third channel is dead."""
    tokens = np.random.default_rng(seed).normal(size=(SAMPLES, 2, 6))
    tokens[..., 2] = 7.0
    return tokens


def diagnosis(root: Path, source: Memory, **more: Any) -> dict[str, Any]:
    table = read_table(DATASETS.get("calvin"), "val", path=write_pairs(root), data_dir=root)
    latents = SplitLatents(table, source, {}, 0, root)  # type: ignore[arg-type]
    return diagnose_latents(latents, MODELS.get("lapa"), DiagnoseConfig(model="lapa", dataset="calvin", **more))


def test_streamed_ranks_are_those_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 12)) @ np.diag(np.linspace(0.1, 4, 12)) + 50
    scatter, even, flat = Scatter(12), Scatter(6), Scatter(6)
    for start in range(0, 500, 37):
        scatter.add(rows[start : start + 37])
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    found = scatter.ranks()
    assert found["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert found["participation_ratio"] == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=1e-9)
    np.testing.assert_allclose(scatter.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scatter.squares / 500, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-9)
    even.add(np.vstack([np.eye(6)[:3], -np.eye(6)[:3]]))
    assert even.ranks() == pytest.approx({"effective_rank": 3.0, "participation_ratio": 3.0, "limit": 5})
    flat.add(np.ones((5, 6)))
    assert flat.ranks() == {"effective_rank": 0.0, "participation_ratio": 0.0, "limit": 4}


def test_dead_channels_batches_and_latents_that_are_not_finite(tmp_path: Path) -> None:
    tokens = tokens_of()
    source = Memory(tokens)
    found = diagnosis(tmp_path, source, batch_size=9)
    assert found["channels"]["dead"] == [2]
    assert source.most == 9
    whole = diagnosis(tmp_path, source, batch_size=1000)
    assert whole["tokens"] == pytest.approx(found["tokens"], rel=1e-9)
    assert found["tokens"]["limit"] == 6
    assert diagnosis(tmp_path, source, rows=10)["samples"] == 10
    tokens[3, 1, 2] = np.nan
    with pytest.raises(LaryError, match=r"sample \w{16} \(images/ep_0/frame_000004\.png\) hold values that are not"):
        diagnosis(tmp_path, source)


def test_use_of_codes(tmp_path: Path) -> None:
    by_hand = code_use({0: np.array([1, 4]), 3: np.array([1, 0]), 7: np.array([2, 0])}, None)
    assert by_hand is not None
    assert by_hand["perplexity_per_place"] == pytest.approx((2**1.5 + 1) / 2)
    codes = np.tile(np.array([[0, 3], [1, 3], [0, 5], [1, 5]]), (SAMPLES // 4, 1))
    found = diagnosis(tmp_path, Memory(tokens_of(), codes), batch_size=7)
    assert found["codes"]["counts"] == {"0": 20, "1": 20, "3": 20, "5": 20}
    assert (found["codes"]["perplexity"], found["codes"]["perplexity_per_place"]) == pytest.approx((4, 2))
    assert "4 of 8 (50.0 %) used, perplexity 4.00 (2.00 at a single place)" in diagnosis_text(found)


def run(root: Path, *options: str) -> Done:
    return lary(
        "diagnose", "--model", "lapa", "--dataset", "calvin", f"--lary-la-dir={root / 'la'}", *options, root=root
    )


def test_diagnose_command_reads_a_store(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    for row, tokens in enumerate(tokens_of().astype(np.float32)):
        file = tmp_path / "la" / "calvin" / "val" / "lapa" / f"latent_action_{row:08d}.npz"
        write_latents(file, tokens, np.array([row % 5, 7]), Stamp("", "", "lapa"))
    done = run(tmp_path)
    assert done.code == 0
    assert "calvin val with lapa (corrected): 40 samples of 8 episodes or videos, tokens 2 x 6" in done.out
    assert "6 of 8 (75.0 %) used" in done.out
    first = (tmp_path / "logs" / "diagnostics" / "calvin" / "val" / "lapa.json").read_bytes()
    assert json.loads(first)["codes"]["counts"]["7"] == 40
    assert run(tmp_path, f"--json={tmp_path / 'again.json'}").code == 0
    assert (tmp_path / "again.json").read_bytes() == first


def test_wrong_requests_name_the_remedy(tmp_path: Path) -> None:
    for options, message in (
        (["--split", "vall"], "Did you mean val"),
        (["--rows", "0"], "--rows 0: must be at least 1"),
        ([], "Run 'lary extract --model lapa --dataset calvin --split val' first"),
    ):
        done = run(tmp_path, *options)
        assert done.code == 2
        assert message in done.err


def test_codebooks_of_records_are_those_of_their_networks() -> None:
    def size(spec: ModelSpec) -> int | None:
        return spec.options.get("network", {}).get("codebook_size")

    known = [spec for spec in MODELS if size(spec) is not None]
    assert len(known) > 5
    for spec in known:
        assert spec.codebook == size(spec)
    assert MODELS.get("univla").codebook == MODELS.get("univla").options["network"]["num_latents"]
    assert MODELS.get("dinov2-origin").codebook is None
