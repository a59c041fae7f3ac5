"""Rules that give codes which nobody uses another place in the codebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lary.probes.team import Team

LEAST = 0.1
"""Below this share, of whatever a rule counts, a code is unused."""
EVERY = 10
"""Steps between two checks of the corrected rule."""
UNMOVED = 1e-12
"""Factor of the published noise on copies, which float32 loses."""
JITTER = 0.01
"""Noise on latents that start several codes, in their deviations."""
END = 0.9
"""Share of the steps after which no code is started anew."""


def replacement_due(step: int) -> bool:
    """Whether the published rule runs in this step, counted from 0."""
    every = 10 if step < 100 else 100 if step < 1000 else 500
    return 0 < step < 5000 and step % every == 0


@torch.no_grad()
def replace_published(
    codebook: Tensor,
    used: Tensor,
    batch: int,
    permute: Callable[[int], Tensor] = torch.randperm,
    normal: Callable[..., Tensor] = torch.randn,
) -> None:
    """Overwrite unused rows with copies of used ones, as published.

    Its defects are kept: see `PublishedRule`.

    Args:
        codebook: (K, Q), changed in place.
        used: forwards in which each code occurred,
            int64 (K,); cleared.
        batch: samples of a forward on this process.
        permute, normal: the draws, in this order.
    """
    idle = used.float() / batch < LEAST
    free, kept = idle.nonzero().flatten(), (~idle).nonzero().flatten()
    used.zero_()
    if not len(kept):
        codebook += UNMOVED * normal(codebook.shape).to(codebook)
        return
    if len(kept) < len(free):
        kept = kept.repeat(-(-len(free) // len(kept)))
        kept = kept[permute(len(kept)).to(kept.device)]
    copies = codebook[kept[: len(free)]]
    codebook[free] = copies + UNMOVED * normal(copies.shape).to(copies)


class PublishedRule:
    """The rule of the published training, with its defects.

    It counts forwards in which a code occurs, those of validation
    too, divides by the samples of a batch, copies rows with the
    old moments of the optimiser, and ends at step 4,500. Every
    process counts and draws for itself, so that codebooks of
    several processes part.
    """

    def __init__(self, codes: int, device: str, seed: int = 0) -> None:
        self.used = torch.zeros(codes, dtype=torch.int64, device=device)
        self.seed = seed

    def count(self, codes: Tensor) -> None:
        """Count a forward with codes (B, N)."""
        self.used[codes.unique()] += 1

    def apply(self, codebook: Tensor, step: int, batch: int, team: Team) -> int:
        """Replace rows if it is time; returns how many."""
        if not replacement_due(step):
            return 0
        before = codebook.detach().clone()
        draw = seeded(self.seed, step, team.rank)
        replace_published(
            codebook,
            self.used,
            batch,
            lambda count: torch.randperm(count, generator=draw),
            lambda shape: torch.randn(shape, generator=draw),
        )
        return int((codebook != before).any(dim=1).sum())


class CorrectedRule:
    """Starts dead codes on latents of the batch, alike on all processes.

    A code is dead if its uses, over all processes, are below a tenth
    of its fair share. Windows grow until a fair share is ten uses.
    Evaluation doesn't count, and the last tenth of the training
    leaves the codebook in peace.
    """

    def __init__(self, codes: int, device: str, seed: int = 0) -> None:
        self.used = torch.zeros(codes, dtype=torch.int64, device=device)
        self.seed = seed

    def count(self, codes: Tensor) -> None:
        """Count the uses of codes (B, N)."""
        self.used += torch.bincount(codes.flatten(), minlength=len(self.used))

    def dead(self, step: int, total: int, team: Team) -> Tensor:
        """Codes to start anew after this step; clears a full window."""
        none = self.used.new_empty(0)
        if step % EVERY or not 0 < step < END * total:
            return none
        used = self.used.clone()
        team.add(used)
        fair = used.sum() / len(used)
        if fair * LEAST < 1:
            return none
        self.used.zero_()
        return (used < LEAST * fair).nonzero().flatten()

    @torch.no_grad()
    def draw(self, count: int, latents: Tensor, step: int, team: Team) -> Tensor:
        """Rows (count, Q) drawn from the latents of all processes.

        Args:
            latents: of this process's share of the batch, (B, N, Q).
                The draw goes by positions in the whole batch, so
                the number of processes doesn't matter.
        """
        places, width = latents.shape[1:]
        sizes = latents.new_tensor([len(latents)])
        team.add(sizes)
        whole = int(sizes) * places
        draw = seeded(self.seed, step)
        picks = torch.randperm(whole, generator=draw).repeat(-(-count // whole))[:count]
        noise = torch.randn(count, width, generator=draw).to(latents)
        sample = picks // places
        mine = sample % team.size == team.rank
        rows = latents.new_zeros(count, width)
        own = latents[sample[mine] // team.size, picks[mine] % places]
        rows[mine] = own
        team.add(rows)
        if count > whole:  # the same latent starts several codes
            rows += JITTER * rows.std(dim=0) * noise
        return rows


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU that numbers alone determine."""
    from lary.files import digest

    state = int(digest(*map(str, numbers)), 16) % 2**63
    return torch.Generator().manual_seed(state)
