"""The image tokenizer Open-MAGVIT2 (Luo et al. 2024, arXiv 2409.04410): its encoder runs, the rest is declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32


@dataclass(frozen=True)
class TokenizerConfig:
    """The part of the published configuration (``ddconfig``) on which the network depends.

    Attributes:
        z_channels: channels of the encoder's map. in_channels, out_ch: of images.
        ch: channels of the first level; ch_mult: multiples of it, level by level. num_res_blocks: per level.
        model_type: ``en18`` for the map of `z_channels`, ``en512`` for the map before the last convolution.
        use_ema: whether checkpoints hold running averages of the weights beside them.
    """

    z_channels: int
    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    in_channels: int = 3
    out_ch: int = 3
    model_type: str = "en18"
    use_ema: bool = True


class ResidualBlock(nn.Module):
    """Two normed convolutions without bias, added to the input."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + out


def blocks(channels: int, out_channels: int, count: int) -> nn.Sequential:
    """`count` blocks, the first of which changes the number of channels."""
    return nn.Sequential(*(ResidualBlock(channels if not i else out_channels, out_channels) for i in range(count)))


class TokenizerLevel(nn.Module):
    """Blocks of one resolution and, but for the last level, halving of it."""

    def __init__(self, channels: int, out_channels: int, count: int, *, halve: bool) -> None:
        super().__init__()
        self.block = blocks(channels, out_channels, count)
        if halve:
            self.downsample = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        return x


class TokenizerEncoder(nn.Module):
    """Images (B, 3, H', W') to maps (B, Z, H, W), not quantized; with ``en512`` without the last convolution."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in (1, *config.ch_mult)]
        count, last = config.num_res_blocks, len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1, bias=False)
        self.down = nn.Sequential(
            *(TokenizerLevel(widths[i], widths[i + 1], count, halve=i < last) for i in range(last + 1))
        )  # fmt: skip
        self.mid_block = blocks(widths[-1], widths[-1], count)
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)
        self.projects = config.model_type != "en512"

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm_out(self.mid_block(self.down(self.conv_in(x)))))
        return self.conv_out(x) if self.projects else x


def _decoder(config: TokenizerConfig) -> nn.Module:
    """The parameters of the decoder, which checkpoints hold and the benchmark doesn't run."""
    z, widths = config.z_channels, [config.ch * factor for factor in config.ch_mult]
    inputs = [*widths[1:], widths[-1]]  # channels that enter each level on the way up
    decoder = nn.Module()
    decoder.conv_in = nn.Conv2d(z, widths[-1], 3, padding=1)
    decoder.mid_block = blocks(widths[-1], widths[-1], config.num_res_blocks)
    decoder.up, decoder.adaptive = nn.ModuleList(), nn.ModuleList()
    for index, (channels, out_channels) in enumerate(zip(inputs, widths, strict=True)):
        level, style = nn.Module(), nn.Module()
        level.block = blocks(channels, out_channels, config.num_res_blocks)
        if index:
            level.upsample = nn.Module()
            level.upsample.conv1 = nn.Conv2d(out_channels, 4 * out_channels, 3, padding=1)
        style.gamma, style.beta = nn.Linear(z, channels), nn.Linear(z, channels)
        decoder.up.append(level)
        decoder.adaptive.append(style)
    decoder.norm_out = nn.GroupNorm(GROUPS, widths[0], eps=1e-6)
    decoder.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)
    return decoder


class Tokenizer(nn.Module):
    """Encoder, decoder and the running averages of both, under the names of the published checkpoint.

    The raw weights of the encoder are the ones that run, as in the published code, not their averages.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder = TokenizerEncoder(config)
        self.decoder = _decoder(config)
        if config.use_ema:
            self.model_ema = self._averages()

    def _averages(self) -> nn.Module:
        averages = nn.Module()
        averages.register_buffer("decay", torch.tensor(0.999))
        averages.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        for key, value in self.named_parameters():
            averages.register_buffer(key.replace(".", ""), torch.empty_like(value))
        return averages

    def drop_unused(self) -> None:
        """Free the weights that encoding doesn't need."""
        del self.decoder
        if hasattr(self, "model_ema"):
            del self.model_ema

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, Z)."""
        tokens: Tensor = self.encoder(images).permute(0, 2, 3, 1)
        return tokens
