"""Pixel encoders: the autoencoders of Wan2.2 and FLUX.2, through diffusers.

Both are encoded to the mean of their posterior, without sampling, and normalised by constants of the weights.
Their decoders take no part: they are neither read from the file nor built in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, check_frames, with_weights
from lary.models.preprocess import CUBIC_224_SIGNED, FLUX2_PAPER_IMAGE, LANCZOS_224_SIGNED
from lary.models.spec import ModelContext, ModelSpec, Weights, register_model
from lary.models.tensors import Layout, Rules, configured_by, read_tensors, rename_keys
from lary.models.weights import Checkpoint, find_weights
from lary.types import LaryError, Latents

if TYPE_CHECKING:
    import torch

CHUNK = 4
"""Frames that Wan's encoder takes at once, after a first one that it takes alone."""

WAN_LAYOUT = Layout(
    files=("vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "Wan2.2_VAE.pth"),
    kind=("_class_name", "AutoencoderKLWan"),
    unused=("decoder.", "conv2.", "post_quant_conv."),
)
FLUX_LAYOUT = Layout(
    files=("ae.safetensors", "vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
    kind=("_class_name", "AutoencoderKLFlux2"),
    unused=("decoder.", "post_quant_conv.", "bn.num_batches_tracked"),
)


def _residual(source: str, target: str) -> Rules:
    """A residual block of Wan: its layers are numbered in the released file and named in diffusers."""
    layers = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
    return tuple((rf"{source}\.residual\.{number}", f"{target}.{name}") for number, name in layers.items())


_WAN_INNER = r"encoder\.downsamples\.(\d+)\.downsamples\.(\d+)"

WAN_KEYS: Rules = (
    (r"encoder\.conv1", "encoder.conv_in"),
    *_residual(_WAN_INNER, r"encoder.down_blocks.\1.resnets.\2"),
    (rf"{_WAN_INNER}\.shortcut", r"encoder.down_blocks.\1.resnets.\2.conv_shortcut"),
    (rf"{_WAN_INNER}\.(resample\.1|time_conv)", r"encoder.down_blocks.\1.downsampler.\3"),
    *_residual(r"encoder\.middle\.0", "encoder.mid_block.resnets.0"),
    *_residual(r"encoder\.middle\.2", "encoder.mid_block.resnets.1"),
    (r"encoder\.middle\.1\.(norm|to_qkv|proj)", r"encoder.mid_block.attentions.0.\1"),
    (r"encoder\.head\.0", "encoder.norm_out"),
    (r"encoder\.head\.2", "encoder.conv_out"),
    (r"conv1", "quant_conv"),
)
"""``Wan2.2_VAE.pth`` to diffusers' AutoencoderKLWan, encoder only."""

_FLUX_BLOCK = r"encoder\.down\.(\d+)\.block\.(\d+)"
_FLUX_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

FLUX_KEYS: Rules = (
    (r"encoder\.(conv_in|conv_out)", r"encoder.\1"),
    (r"encoder\.norm_out", "encoder.conv_norm_out"),
    (r"encoder\.quant_conv", "quant_conv"),
    (rf"{_FLUX_BLOCK}\.(norm1|conv1|norm2|conv2)", r"encoder.down_blocks.\1.resnets.\2.\3"),
    (rf"{_FLUX_BLOCK}\.nin_shortcut", r"encoder.down_blocks.\1.resnets.\2.conv_shortcut"),
    (r"encoder\.down\.(\d+)\.downsample\.conv", r"encoder.down_blocks.\1.downsamplers.0.conv"),
    (r"encoder\.mid\.block_1", "encoder.mid_block.resnets.0"),
    (r"encoder\.mid\.block_2", "encoder.mid_block.resnets.1"),
    *(
        (rf"encoder\.mid\.attn_1\.{source}", f"encoder.mid_block.attentions.0.{target}")
        for source, target in _FLUX_ATTENTION.items()
    ),
    (r"bn", "bn"),
)
"""``ae.safetensors`` of FLUX.2 to diffusers' AutoencoderKLFlux2, encoder only."""

WAN_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
"""Mean of each latent channel of Wan2.2's autoencoder; the released file doesn't hold it."""
WAN_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
"""Standard deviation of each latent channel."""

WAN = ModelSpec(
    name="wan2-2",
    paradigm="pixel encoder",
    dim=48,
    weights=Weights(
        variable="WAN22_VAE_PATH", folder="Wan2.2", hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        revision="b8fff7315c768468a5333511427288870b2e9635",
    ),
    preprocess=LANCZOS_224_SIGNED,
    pair_shape=(2, 196, 48),
    clip_shape=(3, 196, 48),
    first_frame_alone=True,
    pair_shape_paper=(1, 196, 48),
    options={
        "config": {
            "dim": 160, "dec_dim": 256, "z_dim": 48, "dim_mult": (1, 2, 4, 4), "num_res_blocks": 2,
            "attn_scales": (), "temperal_downsample": (False, True, True), "dropout": 0.0,
        },
        "latents_mean": WAN_MEAN,
        "latents_std": WAN_STD,
        "frames_of_a_pair": "as images",
    },
    options_paper={"frames_of_a_pair": "as a chunk"},
    paper_differences=("a pair is one time chunk: only the source image is encoded, the target has no influence",),
    notes=(
        "The published parameter count is that of encoder and decoder; the encoder that runs has 149.64 million.",
        "A clip of nine frames gives three latent steps: the first frame, frames two to five, frames six to nine.",
    ),
    parameters_m=704.69,
    licence="Apache-2.0",
    reference="Wan Team 2025, arXiv 2503.20314",
    description=(
        "Autoencoder of Wan2.2 TI2V-5B, mean of the posterior: a clip's first frame by itself, then chunks of four "
        "frames in one latent step each"
    ),
)  # fmt: skip

FLUX2 = ModelSpec(
    name="flux2",
    paradigm="pixel encoder",
    dim=128,
    weights=Weights(
        variable="AE_MODEL_PATH", folder="FLUX.2", hub="black-forest-labs/FLUX.2-dev",
        revision="26afe3a78bb242c0a8bb181dcc8937bb16e5c66c",
    ),
    preprocess=LANCZOS_224_SIGNED,
    pair_shape=(2, 196, 128),
    clip_shape=(9, 196, 128),
    preprocess_paper=FLUX2_PAPER_IMAGE,
    preprocess_paper_clip=CUBIC_224_SIGNED,
    options={
        "config": {
            "resolution": 256, "in_channels": 3, "ch": 128, "out_ch": 3, "ch_mult": (1, 2, 4, 4),
            "num_res_blocks": 2, "z_channels": 32,
        },
        "axes": "permuted",
    },
    options_paper={"axes": "reshaped"},
    paper_differences=(
        "pixels of an image pair are in [-1, 509]: the division by 255 is missing",
        "frames of a clip are resized by OpenCV's cubic interpolation, those of a pair by Pillow's Lanczos filter",
        "frames are reshaped, not permuted, to channels first: a channel is a third of the picture's rows",
        "latents are reshaped, not permuted, to tokens: a token is 128 neighbouring values of one or two channels",
    ),
    notes=("The published parameter count is that of encoder and decoder; the encoder that runs has 34.43 million.",),
    parameters_m=84.05,
    licence="Apache-2.0 (its repository is gated under the FLUX.2-dev licence)",
    reference="Black Forest Labs 2025, https://bfl.ai/blog/flux-2",
    description="Autoencoder of FLUX.2, mean of the posterior of each frame, 2 x 2 latents folded into one token",
)  # fmt: skip


def wan_arguments(*, dim: int, dec_dim: int, **config: Any) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKLWan for a configuration in the words of the published code."""
    fixed = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    return {"base_dim": dim, "decoder_base_dim": dec_dim, **lists, **fixed}


def flux_arguments(
    *, ch: int, out_ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, in_channels: int, **_: Any
) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKLFlux2; the configuration's `resolution` has no part in its arithmetic."""
    return {
        "in_channels": in_channels,
        "out_channels": out_ch,
        "down_block_types": ["DownEncoderBlock2D"] * len(ch_mult),
        "up_block_types": ["UpDecoderBlock2D"] * len(ch_mult),
        "block_out_channels": [ch * factor for factor in ch_mult],
        "layers_per_block": num_res_blocks,
        "latent_channels": z_channels,
    }


def empty_autoencoder(name: str, arguments: Mapping[str, Any], origin: object = "the record") -> Any:
    """An autoencoder of diffusers without memory yet, and without its decoder.

    Raises:
        LaryError: the arguments, which come from `origin`, describe no network.
    """
    import diffusers
    import torch

    with configured_by(origin, name), torch.device("meta"):
        network = getattr(diffusers, name).from_config(dict(arguments))
    network.decoder = network.post_quant_conv = None
    return network


def read_wan(found: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of Wan2.2's autoencoder under the library's names."""
    tensors = read_tensors(found.files, WAN_LAYOUT)
    return rename_keys(tensors, WAN_KEYS) if found.config is None else tensors


@register_model(WAN)
class WanEncoder(NetworkEncoder):
    """Latents of Wan2.2's autoencoder: P = 1 + (T - 1) // 4, N cells of 16 x 16 pixels in rows, D = 48.

    Frames behind the last whole chunk of four are not encoded. A clip that has no whole chunk, a pair above all,
    is encoded frame by frame (P = T) under ``corrected``; under ``paper`` only its first frame is.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import torch

        options = spec.options_under(context.protocol)
        found = find_weights(spec, context, WAN_LAYOUT)
        network = empty_autoencoder("AutoencoderKLWan", found.config or wan_arguments(**options["config"]), found.file)
        self._network = with_weights(network, found, lambda: read_wan(found), context.device)
        constants = options if found.config is None else self._network.config
        mean, std = (torch.tensor(constants[name], device=context.device) for name in ("latents_mean", "latents_std"))
        super().__init__(spec, context, found.identity, self._network.config.z_dim)
        if not len(mean) == len(std) == self.dim:
            raise LaryError(f"{found.file}: latents_mean and latents_std don't have one value for each of {self.dim}.")
        self._mean, self._scale = mean[:, None, None, None], 1.0 / std[:, None, None, None]
        self._single = options["frames_of_a_pair"] == "as images"
        self._cell: int = self._network.config.patch_size * 2 ** (len(self._network.config.dim_mult) - 1)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W) in [-1, 1] to tokens (B, P, N, D) float32.

        Raises LaryError where H or W is not a multiple of a cell's side.
        """
        check_frames(self._spec, clips, multiple=self._cell)
        batch, frames = clips.shape[:2]
        single = self._single and frames <= CHUNK
        videos = clips.flatten(0, 1)[:, None] if single else clips
        latents = self.run_alone(videos.transpose(1, 2))
        tokens = latents.movedim(1, -1).flatten(2, 3)
        return Latents(tokens.reshape(batch, -1, *tokens.shape[2:]).contiguous())

    def run(self, videos: torch.Tensor) -> torch.Tensor:
        """Videos (B, 3, T, H, W) to normalised latents (B, D, P, h, w)."""
        mean: torch.Tensor = self._network.encode(videos).latent_dist.mode()
        return (mean - self._mean) * self._scale


def read_flux(found: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of FLUX.2's autoencoder under the library's names."""
    import torch

    tensors = read_tensors(found.files, FLUX_LAYOUT)
    if found.config is None:
        # Released as 1 x 1 convolutions, in diffusers linear layers.
        tensors = {
            key: value.flatten(1) if ".attentions." in key and value.ndim == 4 else value
            for key, value in rename_keys(tensors, FLUX_KEYS).items()
        }
    return {**tensors, "bn.num_batches_tracked": torch.tensor(0)}


@register_model(FLUX2)
class FluxEncoder(NetworkEncoder):
    """Latents of FLUX.2's autoencoder, each frame by itself: P = T, N cells of 16 x 16 pixels in rows, D = 128."""

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        options = spec.options_under(context.protocol)
        found = find_weights(spec, context, FLUX_LAYOUT)
        network = empty_autoencoder(
            "AutoencoderKLFlux2", found.config or flux_arguments(**options["config"]), found.file
        )
        self._network = with_weights(network, found, lambda: read_flux(found), context.device)
        statistics, config = self._network.bn, self._network.config
        self._mean = statistics.running_mean[:, None, None]
        self._std = (statistics.running_var[:, None, None] + statistics.eps).sqrt()
        super().__init__(spec, context, found.identity, len(statistics.running_mean))
        self._reshaped = options["axes"] == "reshaped"
        self._fold: int = config.patch_size[0]
        self._cell = self._fold * 2 ** (len(config.block_out_channels) - 1)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W) to tokens (B, T, N, D) float32.

        Raises LaryError where H or W is not a multiple of a cell's side.
        """
        check_frames(self._spec, clips, multiple=self._cell)
        batch, frames = clips.shape[:2]
        if self._reshaped:
            clips = clips.movedim(2, -1).reshape(clips.shape)
        latents = self.run_alone(clips.flatten(0, 1))
        if self._reshaped:
            return Latents(latents.reshape(batch, frames, -1, self.dim))
        return Latents(latents.flatten(2).transpose(1, 2).reshape(batch, frames, -1, self.dim))

    def run(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to normalised latents (B, D, h, w), channel-major within a fold."""
        import torch

        mean = self._network.encode(images).latent_dist.mode()
        folded: torch.Tensor = torch.nn.functional.pixel_unshuffle(mean, self._fold)
        latents: torch.Tensor = (folded - self._mean) / self._std
        return latents
