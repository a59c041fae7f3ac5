"""The DiT probe of regression: a transformer that denoises action chunks.

Keys, arithmetic and sampling are those of the published probe (arXiv
2604.11689), which follows the action model of CogACT (arXiv 2411.19650) with
the noise of DDPM (arXiv 2006.11239): the latents enter as one token before the
K steps of A dimensions. Other numbers of steps are DDIM's (arXiv 2010.02502).
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lary.probes.nets import INIT_STD, SelfBlock
from lary.probes.presets import TRAINING_STEPS
from lary.probes.sources import on_device

PUBLISHED_SAMPLER_STEPS = 500
CONDITION_DROPOUT = 0.1
CLIP = 1.0  # published: predictions stay within one standard deviation
TIME_CHANNELS = 256


@functools.cache
def alphas_cumprod(device: Any = "cpu") -> Tensor:
    """Share of the signal's variance left at each timestep, (1000,) float32.

    The squared cosine of arXiv 2102.09672, with no beta above 0.999.
    """

    def left(step: int) -> float:
        return math.cos((step / TRAINING_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - left(step + 1) / left(step), 0.999) for step in range(TRAINING_STEPS)]
    return torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32), dim=0).to(device)


def sampling_timesteps(steps: int) -> list[int]:
    """Timesteps of a sampling, down to 0: every (1000 // steps)-th one."""
    return [TRAINING_STEPS // steps * index for index in reversed(range(steps))]


def add_noise(action: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Chunks (B, K, A) with the noise of `timesteps` (B,) added."""
    left = alphas_cumprod(action.device)[timesteps][:, None, None]
    return left.sqrt() * action + (1 - left).sqrt() * noise


def plain_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _linear(size: int, dim: int) -> nn.Sequential:
    """One linear layer under the published key ``linear``."""
    return nn.Sequential(OrderedDict(linear=nn.Linear(size, dim)))


def _dropped(count: int) -> Tensor:
    """Draw which of `count` samples train without their latents, (count,) bool."""
    return torch.rand(count) < CONDITION_DROPOUT


class ConditionEmbedder(nn.Module):
    """Latents (B, D') -> (B, C); a learned vector replaces those of samples that are `dropped` (B,)."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, dim)
        self.uncondition = nn.Parameter(torch.zeros(1, size))

    def forward(self, x: Tensor, dropped: Tensor | None = None) -> Tensor:
        known: Tensor = self.linear(x)
        if dropped is None:
            return known
        # Selected after the layer: before it, latents would need a gradient.
        return torch.where(dropped[:, None], self.linear(self.uncondition), known)


def timestep_features(timesteps: Tensor) -> Tensor:
    """Cosines and sines of timesteps, (B,) -> (B, 256)."""
    half = TIME_CHANNELS // 2
    frequencies = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * frequencies / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _DiffusionTransformer(nn.Module):
    """A transformer over a token of condition and the steps of a noisy chunk.

    `history_embedder` is not used, but published checkpoints hold it.
    """

    def __init__(self, latent_dim: int, action_dim: int, steps: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(steps + 1, dim))
        self.history_embedder = _linear(action_dim, dim)
        self.x_embedder = _linear(action_dim, dim)
        layers = nn.Linear(TIME_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(*layers)})
        self.z_embedder = ConditionEmbedder(latent_dim, dim)
        # The timestep enters through the condition token, not through norms.
        norm = {"eps": 1e-6, "elementwise_affine": False}
        self.blocks = nn.ModuleList(SelfBlock(dim, heads, "tanh", **norm) for _ in range(depth))
        self.final_layer = _linear(dim, action_dim)
        self._initialise()

    def denoise(self, noisy: Tensor, timesteps: Tensor, embedded: Tensor) -> Tensor:
        """Predict the noise (B, K, A) in chunks, given embedded latents (B, C)."""
        condition = self.t_embedder["mlp"](timestep_features(timesteps)) + embedded
        x = torch.cat([condition[:, None], self.x_embedder(noisy)], dim=1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.final_layer(plain_norm(x))[:, 1:]

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise as DiT (arXiv 2212.09748) and CogACT: the last layer is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in (self.t_embedder, self.x_embedder, self.z_embedder, self.history_embedder):
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=INIT_STD)
        nn.init.normal_(self.positional_embedding, std=self.positional_embedding.shape[1] ** -0.5)
        nn.init.zeros_(self.final_layer.get_parameter("linear.weight"))


class ActionExpertDiT(nn.Module):
    """Tokens (B, ...), flattened -> normalised chunk (B, K * A), step by step."""

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        action_steps: int,
        hidden_size: int = 512,
        depth: int = 6,
        num_heads: int = 8,
        sampler_steps: int = PUBLISHED_SAMPLER_STEPS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = (action_steps, action_dim)
        self.sampler_steps, self.seed = sampler_steps, seed
        self.dit = _DiffusionTransformer(latent_dim, action_dim, action_steps, hidden_size, depth, num_heads)

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Predict the noise in chunks (B, K, A) at timesteps (B,)."""
        return self.dit.denoise(noisy, timesteps, self.dit.z_embedder(tokens.flatten(1), dropped))

    def loss(self, tokens: Tensor, target: Tensor, count: int, share: slice) -> Tensor:
        """Huber loss of the noise at random timesteps of a `share` of a batch.

        A sum, divided by the size of the whole batch of `count`, for all of
        which noise is drawn: the number of processes doesn't change it.
        """
        drawn = torch.randn(count, *self.shape), torch.randint(TRAINING_STEPS, (count,)), _dropped(count)
        noise, timesteps, dropped = (on_device(each[share], tokens.device) for each in drawn)
        noisy = add_noise(target.reshape(-1, *self.shape), noise, timesteps)
        found = self(noisy, timesteps, tokens, dropped).float()
        return F.huber_loss(found, noise, reduction="sum") / (count * math.prod(self.shape))

    @torch.no_grad()
    def predict(self, tokens: Tensor) -> Tensor:
        """Sample chunks (B, K * A); every batch gets the same noise on any device."""
        generator = torch.Generator().manual_seed(self.seed)
        shape, device = (len(tokens), *self.shape), tokens.device
        noise: Any = lambda _: on_device(torch.randn(shape, generator=generator), device)  # noqa: E731
        *_, last = self.trajectory(tokens, noise)
        return last.flatten(1)

    @torch.no_grad()
    def trajectory(self, tokens: Tensor, noise: Callable[[int | None], Tensor]) -> Iterator[Tensor]:
        """Yield the state (B, K, A) after each step of a sampling.

        `noise` gives the start for None, and what is added at a timestep.
        """
        left = alphas_cumprod().tolist()
        timesteps = sampling_timesteps(self.sampler_steps)
        state = noise(None).to(tokens.device)
        embedded = self.dit.z_embedder(tokens.flatten(1))  # the same at every step
        for time, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            times = torch.full((len(tokens),), time, device=tokens.device)
            here, there = left[time], 1.0 if following is None else left[following]
            predicted = self.dit.denoise(state, times, embedded)
            clean = ((state - math.sqrt(1 - here) * predicted) / math.sqrt(here)).clamp(-CLIP, CLIP)
            if self.sampler_steps == PUBLISHED_SAMPLER_STEPS:
                alpha, unknown = here / there, (1 - there) / (1 - here)
                signal = math.sqrt(there) * (1 - alpha) / (1 - here)
                state = signal * clean + math.sqrt(alpha) * (1 - there) / (1 - here) * state
                if time:  # the small fixed variance of DDPM
                    fresh = noise(time).to(tokens.device)
                    state = state + math.sqrt(max(unknown * (1 - alpha), 1e-20)) * fresh
            else:  # the noise that agrees with the clipped value
                rest = (state - math.sqrt(here) * clean) / math.sqrt(1 - here)
                state = math.sqrt(there) * clean + math.sqrt(1 - there) * rest
            yield state
