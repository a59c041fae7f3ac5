"""The codebook in training: rules that renew its rows, and the monitor of its health."""

import json
import operator
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lary.files import digest
from lary.probes.team import Team

Draw = Callable[..., Tensor]

LEAST = 0.1
"""Share of a batch's samples, as published, or fair share, below which a code is unused."""
EVERY = 10
"""Steps between checks of the corrected rule."""
END = 0.9
"""Share of the steps after which no code is restarted."""
LOSSES = ("noise", "copy", "hard", "continuous")
"""Tokens with noise, the first frame, codes, the latent."""
COLLAPSED = 1.5
"""Perplexity at which a codebook is one code."""


def seeded(*parts: int | str) -> torch.Generator:
    """A CPU generator that its arguments determine."""
    return torch.Generator().manual_seed(int(digest(*map(str, parts)), 16) % 2**63)


def replacement_due(step: int) -> bool:
    """Whether the published rule runs in this step, counted from 0."""
    every = 10 if step < 100 else 100 if step < 1000 else 500
    return 0 < step < 5000 and step % every == 0


@torch.no_grad()
def replace_published(
    codebook: Tensor, used: Tensor, batch: int, permute: Draw = torch.randperm, normal: Draw = torch.randn
) -> None:
    """Overwrite rows (K, Q) unused by `batch` samples with copies, as published; clears `used`, int64 (K,)."""
    idle = used.float() / batch < LEAST
    free = idle.nonzero().flatten()
    kept = (~idle).nonzero().flatten()
    used.zero_()
    if not len(kept):
        codebook += 1e-12 * normal(codebook.shape).to(codebook)
        return
    if len(kept) < len(free):
        kept = kept.repeat(-(-len(free) // len(kept)))
        kept = kept[permute(len(kept)).to(kept.device)]
    copies = codebook[kept[: len(free)]]
    codebook[free] = copies + 1e-12 * normal(copies.shape).to(copies)  # lost in float32


class PublishedRule:
    """The rule of the published training, whose defects ``docs/training.md`` names."""

    def __init__(self, codes: int, device: str, seed: int = 0) -> None:
        self.used = torch.zeros(codes, dtype=torch.int64, device=device)
        self.seed = seed

    def count(self, own: Tensor, whole: Tensor) -> None:
        """Count a forward by the uses (K,) of this process, and of all."""
        self.used += own > 0

    def draws(self, step: int, rank: int) -> tuple[Draw, Draw]:
        """What permutes and what draws values in a step."""
        draw = seeded(self.seed, step, rank)
        return partial(torch.randperm, generator=draw), partial(torch.randn, generator=draw)

    def apply(self, codebook: Tensor, step: int, batch: int, team: Team) -> None:
        """Replace rows if it is time."""
        if replacement_due(step):
            replace_published(codebook, self.used, batch, *self.draws(step, team.rank))


class CorrectedRule(PublishedRule):
    """Starts codes below a tenth of their fair share on latents of the batch, alike on all processes."""

    def count(self, own: Tensor, whole: Tensor) -> None:
        self.used += whole

    def dead(self, step: int, total: int) -> Tensor:
        """Codes to start anew after this step; ends a full window."""
        fair = self.used.sum() / len(self.used)
        if step % EVERY or not 0 < step < END * total or fair * LEAST < 1:
            return self.used.new_empty(0)
        found = (self.used < LEAST * fair).nonzero().flatten()
        self.used.zero_()
        return found

    @torch.no_grad()
    def draw(self, count: int, latents: Tensor, step: int, team: Team) -> Tensor:
        """Rows (count, Q) drawn from latents (B, N, Q) of each process; with noise where they are too few."""
        places, width = latents.shape[1:]
        samples = latents.new_tensor([len(latents)])
        team.add(samples)
        whole = int(samples) * places
        draw = seeded(self.seed, step)
        picks = torch.randperm(whole, generator=draw).repeat(-(-count // whole))[:count]
        sample = picks // places
        rows = latents.new_zeros(count, width)
        mine = sample % team.size == team.rank  # as `Team.share`
        rows[mine] = latents[sample[mine] // team.size, picks[mine] % places]
        team.add(rows)
        if count > whole:
            rows += 0.01 * rows.std(dim=0) * torch.randn(count, width, generator=draw).to(rows)
        return rows


def monitor_due(step: int, total: int) -> bool:
    """Whether the monitor runs after so many steps."""
    return step == total or step % (100 if step < 1000 else 500) == 0


class Monitor:
    """Signals of a model's health on raw held-out pairs (M, 2, ...), `batch` at once."""

    def __init__(self, embed: Callable[..., Any], pairs: Tensor, batch: int, seed: int) -> None:
        self._embed = embed
        self._pairs = pairs
        self._seed = seed
        # Tokens of another pair need two pairs in a part.
        self._parts = -(-len(pairs) // max(2, min(batch, len(pairs))))
        still = (pairs[:, 0] == pairs[:, 1]).flatten(1).all(dim=1)
        self._static = float(still.float().mean())

    @torch.no_grad()
    def measure(self, network: Any) -> dict[str, Any]:
        """All signals, as means."""
        sums = Counter[str]()
        latents = []
        codes = []
        draw = seeded(self._seed, "monitor")
        for part in self._pairs.tensor_split(self._parts):
            found, own, _ = compare_tokens(network, self._embed, part, draw)
            sums.update(own)
            latents.append(found.latent.cpu())
            codes.append(found.codes.cpu())
        mean = {name: max(value / len(self._pairs), 1e-30) for name, value in sums.items()}
        book = network.vq.codebooks.detach().float().cpu()
        row = _codes(torch.cat(codes), book) | _latents(torch.cat(latents), mean["length"])
        row |= {f"loss_{name}": mean[name] for name in LOSSES}
        gaps = {f"gap_{name}": mean[f"other_{name}"] / mean[name] - 1 for name in LOSSES[2:]}
        row |= gaps
        row["gap"] = max(gaps.values())
        row["quantisation_error"] = mean["error"] / mean["length"]
        row["static_ratio"] = mean["still"] / mean["length"]
        row["margin"] = 1 - mean["noise"] / mean["copy"]
        row["static_pairs"] = self._static
        return row


@torch.no_grad()
def compare_tokens(
    network: Any, embed: Callable[..., Any], pairs: Tensor, draw: torch.Generator
) -> tuple[Any, dict[str, float], dict[str, Tensor]]:
    """Decode raw pairs (B, 2, ...) by own tokens, and those of the pair before (``other_``).

    Returns the forward pass, sums of errors and lengths, predictions.
    """
    embedded, pixels = embed(network, pairs)
    latent = network.latent(embedded).float()
    first = embedded[:, 0]
    noise = torch.randn(latent.shape, generator=draw).to(latent)
    found = network(embedded, pixels, noise, latent)
    hard = network.vq.quantized(found.codes)
    same = network.latent(torch.stack([first, first], dim=1)).float()
    pictures = {"noise": found.reconstruction, "copy": first}
    if pixels is not None:
        pictures["copy"] = pairs[:, 0].to(pixels.device) / 255
    for name, rows in (("hard", hard), ("continuous", latent)):
        pictures[name] = network.decode(first, network.vq.tokens(rows))
        others = network.vq.tokens(rows.roll(1, 0))
        pictures[f"other_{name}"] = network.decode(first, others)
    lengths = {"error": latent - hard, "length": latent, "still": same}
    sums = {name: float(rows.norm(dim=-1).double().mean(dim=1).sum()) for name, rows in lengths.items()}
    for name, picture in pictures.items():
        error = (picture.float() - found.target.float()).square().flatten(1).mean(dim=1)
        sums[name] = float(error.double().sum())
    return found, sums, pictures


def codebook_use(counts: Tensor) -> dict[str, Any]:
    """Use of a codebook by counts (K,) of its codes."""
    size = len(counts)
    shares = counts.double() / counts.sum()
    used = int((shares >= LEAST / size).sum())
    perplexity = float(torch.special.entr(shares).sum().exp())
    return {
        "codes": size,
        "perplexity": perplexity,
        "perplexity_share": perplexity / size,
        "codes_used": used,
        "used_share": used / size,
    }


def _codes(codes: Tensor, book: Tensor) -> dict[str, Any]:
    """Use of the codebook (K, Q) by codes (M, N), and its closest rows."""
    apart = torch.pdist(book) if len(book) > 1 else torch.ones(1)
    closest = float(apart.min() / apart.median().clamp(min=1e-30))
    return codebook_use(torch.bincount(codes.flatten(), minlength=len(book))) | {"closest_codes": closest}


def _latents(latents: Tensor, length: float) -> dict[str, Any]:
    """Mean length, spread over samples and effective rank (Roy and Vetterli 2007) of (M, N, Q)."""
    centred = (latents - latents.mean(dim=0)).double().flatten(0, 1)
    spread = float(centred.square().sum(dim=-1).mean().sqrt())
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()
    rank = float(torch.special.entr(values / values.sum().clamp(min=1e-30)).sum().exp())
    return {"latent_length": length, "latent_spread": spread / length, "latent_rank": rank}


ALARMS: dict[str, tuple[Callable[[float, float], bool], float, str]] = {
    name: (getattr(operator, wrong), limit, text)
    for name, (wrong, limit, text) in json.loads(Path(__file__).with_name("alarms.json").read_text()).items()
}
"""By signal: when it is wrong, and what that means."""


def verdict(row: dict[str, Any]) -> dict[str, Any]:
    """The verdict on signals: ``state`` (healthy, warning, collapsed), ``alarms``, ``text``."""
    found = {name: text for name, (wrong, limit, text) in ALARMS.items() if wrong(row[name], limit)}
    state = "warning" if found else "healthy"
    if row["perplexity"] <= COLLAPSED < row["codes"]:
        state = "collapsed"
    good = "perplexity {perplexity:.2f} of {codes} codes, margin {margin:.0%}"
    text = "; ".join(found.values()) or good
    return {"state": state, "alarms": [*found], "text": f"{state}: {text.format(**row)}"}


def code_entropy(latents: Tensor, codebook: Tensor) -> Tensor:
    """Entropy, in nats, of soft choices, by squared distance, over latents (B, N, Q)."""
    away = torch.cdist(latents.flatten(0, 1), codebook).square()
    soft = (-away / away.detach().std()).softmax(dim=-1).mean(dim=0)
    entropy: Tensor = torch.special.entr(soft).sum()
    return entropy
