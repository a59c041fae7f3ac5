"""Diagnostics of latents: ranks, channels, codes and relations of constructed data, by hand and by a library."""

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
from lary.results.diagnostics import (
    Scatter,
    code_use,
    diagnose_latents,
    diagnosis_text,
    find_reversals,
    find_triples,
    reversal,
)
from lary.types import LaryError
from tests.helpers import Done, lary
from tests.tree import write_table

POINTS = 5
"""Frames per episode; all pairs of them are in the table, in both directions."""


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


def write_pairs(root: Path, pairs: Sequence[tuple[int, int, int]]) -> Path:
    """A table of pairs (episode, source, target)."""
    path = root / "data" / "val_la_calvin_5_lapa.csv"
    rows = []
    for row, (episode, source, target) in enumerate(pairs):
        ends = {"src_img": source, "tgt_img": target}
        frames = {name: f"images/ep_{episode}/frame_{at:06d}.png" for name, at in ends.items()}
        action = f"actions/ep_{episode}/action_{source}to{target}.npy"
        rows.append({**frames, "action": action, "la_path": f"calvin/val/lapa/latent_action_{row:08d}.npz"})
    write_table(path, rows)
    return path


def every_pair(episodes: int) -> list[tuple[int, int, int]]:
    return [(e, a, b) for e in range(episodes) for a in range(POINTS) for b in range(POINTS) if a != b]


def motions(pairs: Sequence[tuple[int, int, int]], noise: float, offset: float = 0.0) -> np.ndarray:
    """Latents (n, 2, 6) that are linear in the motion between two places, with noise and a common offset."""
    rng = np.random.default_rng(4)
    places = rng.normal(size=(100, POINTS, 3))
    matrix = rng.normal(size=(3, 12))
    moved = np.stack([places[e, b] - places[e, a] for e, a, b in pairs]) @ matrix
    moved += noise * rng.normal(size=moved.shape) + offset
    return moved.reshape(-1, 2, 6)


def diagnosis(root: Path, tokens: np.ndarray, pairs: Sequence[tuple[int, int, int]], **more: object) -> dict[str, Any]:
    table = read_table(DATASETS.get("calvin"), "val", path=write_pairs(root, pairs), data_dir=root)
    source = more.pop("source", None) or Memory(tokens)
    latents = SplitLatents(table, source, {}, 0, root)  # type: ignore[arg-type]
    return diagnose_latents(latents, MODELS.get("lapa"), DiagnoseConfig(model="lapa", dataset="calvin", **more))  # type: ignore[arg-type]


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
    pairs = every_pair(8)
    tokens = motions(pairs, 0.1)
    tokens[..., 2] = 7.0
    source = Memory(tokens)
    found = diagnosis(tmp_path, tokens, pairs, batch_size=9, source=source)
    assert found["channels"]["dead"] == [2]
    assert source.most == 9
    whole = diagnosis(tmp_path, tokens, pairs, batch_size=1000)
    assert whole["tokens"] == pytest.approx(found["tokens"], rel=1e-9)
    assert found["tokens"]["limit"] == 6
    assert diagnosis(tmp_path, tokens, pairs, rows=10)["samples"] == 10
    tokens[3, 1, 2] = np.nan
    with pytest.raises(LaryError, match=r"sample \w{16} \(images/ep_0/frame_000004\.png\) hold values that are not"):
        diagnosis(tmp_path, tokens, pairs)


def test_use_of_codes(tmp_path: Path) -> None:
    by_hand = code_use({0: np.array([1, 4]), 3: np.array([1, 0]), 7: np.array([2, 0])}, None)
    assert by_hand is not None
    assert by_hand["perplexity_per_place"] == pytest.approx((2**1.5 + 1) / 2)
    pairs = every_pair(4)
    codes = np.tile(np.array([[0, 3], [1, 3], [0, 5], [1, 5]]), (len(pairs) // 4, 1))
    found = diagnosis(tmp_path, np.empty(0), pairs, source=Memory(motions(pairs, 0.1), codes), batch_size=7)
    assert found["codes"]["counts"] == {"0": 40, "1": 40, "3": 40, "5": 40}
    assert (found["codes"]["perplexity"], found["codes"]["perplexity_per_place"]) == pytest.approx((4, 2))
    assert "4 of 8 (50.0 %) used, perplexity 4.00 (2.00 at a single place)" in diagnosis_text(found)


def test_triples_are_those_of_a_search_through_all() -> None:
    rng = np.random.default_rng(1)
    pairs = [(f"{a}", f"{b}") for a, b in rng.integers(0, 9, (40, 2))]
    first = {pair: row for row, pair in reversed(list(enumerate(pairs)))}
    wanted = {
        (first[a, b], first[b2, c], first[a2, c2])
        for a, b in first for b2, c in first for a2, c2 in first
        if b == b2 and a == a2 and c == c2 and a != b and b != c and a != c
    }  # fmt: skip
    assert wanted
    assert {tuple(row) for row in find_triples(pairs, 10_000, 0).tolist()} == wanted
    assert len(find_triples(pairs, 3, 0)) == 3


def test_reversals_of_pairs_and_clips() -> None:
    assert find_reversals([("a", "b"), ("c", "d"), ("b", "a"), ("e", "e")], 9, 0).tolist() == [[0, 2]]
    clips = [("v/1.mp4",), ("v/2.mp4",), ("v/1_rev.mp4",)]
    assert find_reversals(clips, 9, 0).tolist() == [[0, 2]]
    assert reversal(("v/1_rev.mp4",)) == ("v/1.mp4",)


def numbers(found: dict[str, Any], kind: str, part: str, which: str = "as_stored") -> tuple[float, float, float]:
    """Value and ends of the interval of the error or the cosine of a relation."""
    own = found[which][kind][part]
    return own["value"], own["low"], own["high"]


def test_motions_add_up_and_turn_round(tmp_path: Path) -> None:
    """Motions do, with a common offset once it is subtracted; noise does not."""
    pairs = every_pair(30)
    found = diagnosis(tmp_path, motions(pairs, 0.05), pairs)
    for relation, count in ((found["additivity"], 1800), (found["reversibility"], 300)):
        assert (relation["relations"], relation["groups"]) == (count, 30)
        assert numbers(relation, "relation", "relative_error")[0] < 0.1
        assert numbers(relation, "relation", "cosine")[0] > 0.98
        assert abs(numbers(relation, "shuffled", "cosine")[0]) < 0.1
        assert numbers(relation, "shuffled", "relative_error")[1] > 1
        assert numbers(relation, "difference", "relative_error")[2] < -1
        assert numbers(relation, "difference", "cosine")[1] > 0.8
    apart = diagnosis(tmp_path, motions(pairs, 0.05, offset=5.0), pairs)["additivity"]
    assert numbers(apart, "relation", "relative_error")[0] > 0.8
    assert numbers(apart, "relation", "relative_error", "centred")[0] < 0.1
    noise = diagnosis(tmp_path, np.random.default_rng(2).normal(size=(len(pairs), 2, 6)), pairs)
    for name in ("additivity", "reversibility"):
        _, low, high = numbers(noise[name], "difference", "cosine")
        assert low < 0 < high


def test_what_has_no_relations_says_so(tmp_path: Path) -> None:
    pairs = every_pair(3)
    tokens = np.random.default_rng(3).normal(size=(len(pairs), 2, 4, 5))
    text = diagnosis_text(diagnosis(tmp_path, tokens, pairs))
    assert text.count("one step per frame differ, add up and turn round by construction") == 2
    pairs = [(e, a, a + 1) for e in range(6) for a in range(3)]
    text = diagnosis_text(found := diagnosis(tmp_path, motions(pairs, 0.1), pairs))
    assert "no triples: no pairs (a, b), (b, c) and (a, c) of this split share their frames" in text
    assert "no reversals: no pair" in text
    assert found["additivity"]["why_not"].startswith("no triples")


def run(root: Path, *options: str) -> Done:
    return lary(
        "diagnose", "--model", "lapa", "--dataset", "calvin", f"--lary-la-dir={root / 'la'}", *options, root=root
    )


def test_diagnose_command_reads_a_store(tmp_path: Path) -> None:
    pairs = every_pair(7)
    write_pairs(tmp_path, pairs)
    for row, tokens in enumerate(motions(pairs, 0.05).astype(np.float32)):
        file = tmp_path / "la" / "calvin" / "val" / "lapa" / f"latent_action_{row:08d}.npz"
        write_latents(file, tokens, np.array([row % 5, 7]), Stamp("", "", "lapa"))
    done = run(tmp_path)
    assert done.code == 0
    assert "calvin val with lapa (corrected): 140 samples of 7 episodes or videos, tokens 2 x 6" in done.out
    assert "6 of 8 (75.0 %) used" in done.out
    assert "420 times in 7 episodes" in done.out
    file = tmp_path / "logs" / "diagnostics" / "calvin" / "val" / "lapa.json"
    first = file.read_bytes()
    found = json.loads(first)
    assert found["codes"]["counts"]["7"] == 140
    assert found["reversibility"]["as_stored"]["relation"]["cosine"]["value"] > 0.98
    assert run(tmp_path, f"--json={tmp_path / 'again.json'}").code == 0
    assert (tmp_path / "again.json").read_bytes() == first


def test_wrong_requests_name_the_remedy(tmp_path: Path) -> None:
    for options, message in (
        (["--split", "vall"], "Did you mean val"),
        (["--rows", "0"], "--rows 0: must be at least 1"),
        (["--relations", "0"], "--relations 0: must be at least 1"),
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
