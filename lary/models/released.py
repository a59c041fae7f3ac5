"""Models in libraries: the autoencoders of Wan2.2 and FLUX.2, V-JEPA 2, EfficientNet.

The autoencoders give the mean of their posterior, normalised by constants
of the weights. Each token of V-JEPA 2 sees the whole clip. Decoders and
predictor are not built. A checkpoint is the library's folder, or the
released file with renamed keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, built_from, check_frames, with_weights
from lary.models.spec import ModelContext, ModelSpec, builtin, library_fields, register_model
from lary.models.tensors import Tensors, read_tensors, rename_keys, weight_layout
from lary.models.weights import Checkpoint, find_weights
from lary.nets import each_frame
from lary.types import JsonDict, LaryError, Latents, UsageError

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 4
"""Frames that Wan's encoder takes at once, after a first one alone."""


def flux_arguments(**config: Any) -> JsonDict:
    """Fields of FLUX.2's published code for diffusers, without `resolution`."""
    multiples = config["ch_mult"]
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_ch"],
        "down_block_types": ["DownEncoderBlock2D"] * len(multiples),
        "up_block_types": ["UpDecoderBlock2D"] * len(multiples),
        "block_out_channels": [config["ch"] * factor for factor in multiples],
        "layers_per_block": config["num_res_blocks"],
        "latent_channels": config["z_channels"],
    }


def empty_autoencoder(name: str, arguments: Mapping[str, Any], origin: object) -> Any:
    """An autoencoder of diffusers, so far without memory, without its decoder.

    Raises LaryError.
    """
    import diffusers

    with built_from(origin, name):
        network = getattr(diffusers, name).from_config(dict(arguments))
    network.decoder = network.post_quant_conv = None
    return network


def read_renamed(found: Checkpoint, table: str) -> Tensors:
    tensors = read_tensors(found.files, weight_layout(table))
    return rename_keys(tensors, table) if found.config is None else tensors


@register_model(builtin("wan2-2"))
class WanEncoder(NetworkEncoder):
    """Latents of Wan2.2's autoencoder: P = 1 + (T - 1) // 4, D = 48.

    N are cells of 16 x 16 pixels in rows. Frames behind
    the last whole chunk of four are not encoded. Without a
    whole chunk, as in a pair, ``corrected`` encodes frame
    by frame (P = T), ``paper`` the first frame only.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import torch

        options = spec.options_under(context.protocol)
        found = find_weights(spec, context, weight_layout("wan2-2"))
        arguments = found.config or library_fields(options["config"], "wan2-2")
        network = empty_autoencoder("AutoencoderKLWan", arguments, found.file)
        self._network = with_weights(network, found, lambda: read_renamed(found, "wan2-2"), context.device)
        config = self._network.config
        # The released file lacks means and deviations of channels.
        constants = options if found.config is None else config
        mean, std = (torch.tensor(constants[name], device=context.device) for name in ("latents_mean", "latents_std"))
        super().__init__(spec, context, found.identity, config.z_dim)
        if not len(mean) == len(std) == self.dim:
            raise LaryError(f"{found.file}: latents_mean and latents_std don't have one value for each of {self.dim}.")
        self._mean, self._scale = mean[:, None, None, None], 1.0 / std[:, None, None, None]
        self._single = options["frames_of_a_pair"] == "as images"
        self._cell = config.patch_size * 2 ** (len(config.dim_mult) - 1)

    def encode(self, clips: Tensor) -> Latents:
        """Clips (B, T, 3, H, W) in [-1, 1] to tokens (B, P, N, D) float32."""
        check_frames(self._spec, clips, multiple=self._cell)
        batch, frames = clips.shape[:2]
        single = self._single and frames <= CHUNK
        videos = clips.flatten(0, 1)[:, None] if single else clips
        tokens = self.run_alone(videos.transpose(1, 2)).movedim(1, -1).flatten(2, 3)
        return Latents(tokens.flatten(0, 1).unflatten(0, (batch, -1)).contiguous())

    def run(self, videos: Tensor) -> Tensor:
        """Videos (B, 3, T, H, W) to normalised latents (B, D, P, h, w)."""
        return (self._network.encode(videos).latent_dist.mode() - self._mean) * self._scale


def read_flux(found: Checkpoint) -> Tensors:
    import torch

    tensors = read_renamed(found, "flux2")
    for key, value in tensors.items():
        if ".attentions." in key and value.ndim == 4:
            tensors[key] = value.flatten(1)  # released as 1 x 1 convolutions, in diffusers linear layers
    return {**tensors, "bn.num_batches_tracked": torch.tensor(0)}


@register_model(builtin("flux2"))
class FluxEncoder(NetworkEncoder):
    """Latents of FLUX.2's autoencoder, each frame by itself: P = T, D = 128.

    N are cells of 16 x 16 pixels in rows.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        options = spec.options_under(context.protocol)
        found = find_weights(spec, context, weight_layout("flux2"))
        arguments = found.config or flux_arguments(**options["config"])
        network = empty_autoencoder("AutoencoderKLFlux2", arguments, found.file)
        self._network = with_weights(network, found, lambda: read_flux(found), context.device)
        norm, config = self._network.bn, self._network.config
        self._mean = norm.running_mean[:, None, None]
        self._std = (norm.running_var[:, None, None] + norm.eps).sqrt()
        super().__init__(spec, context, found.identity, len(norm.running_mean))
        self._reshaped = options["axes"] == "reshaped"
        self._fold = config.patch_size[0]
        self._cell = self._fold * 2 ** (len(config.block_out_channels) - 1)

    def encode(self, clips: Tensor) -> Latents:
        check_frames(self._spec, clips, multiple=self._cell)
        batch, frames = clips.shape[:2]
        if self._reshaped:
            # As published: colours last re-read as colours first, and below
            # latents (D, h, w) as tokens (h * w, D).
            clips = clips.movedim(2, -1).reshape(clips.shape)
        latents = self.run_alone(clips.flatten(0, 1))
        if not self._reshaped:
            latents = latents.flatten(2).transpose(1, 2)
        return Latents(latents.reshape(batch, frames, -1, self.dim))

    def run(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to normalised latents (B, D, h, w).

        A cell folds 2 x 2 latents, with values in the order channel, row,
        column.
        """
        import torch

        mean = self._network.encode(images).latent_dist.mode()
        folded = torch.nn.functional.pixel_unshuffle(mean, self._fold)
        return (folded - self._mean) / self._std


class Rotary:
    """Rotary positions of V-JEPA 2 with the angles of all layers in one table.

    The library computes them anew in every layer, most of the
    operations that a GPU is given. Numbers are the library's.
    """

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self._tables: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, _: Any) -> Tensor:
        """Rotate queries or keys (B, heads, N, D)."""
        import torch

        key = x.shape[-2], x.dtype, x.device
        compiled = torch.compiler.is_compiling()  # into one table anyway
        if not compiled and key not in self._tables:
            with torch.inference_mode(False):  # later passes may have gradients
                self._tables[key] = self.angles(x)
        sines, cosines = self.angles(x) if compiled else self._tables[key]
        turned, rest = x.tensor_split([sines.shape[-1]], -1)
        first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
        swapped = torch.stack((-second, first), -1).flatten(-2)
        return torch.cat([turned * cosines + swapped * sines, rest], -1)

    def angles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sines and cosines (N, 3 D'): in time, by row, by column."""
        import torch

        own, size = self._attention, self._attention.d_dim
        exponents = torch.arange(size // 2, dtype=x.dtype, device=x.device) / (size / 2.0)
        speeds = 1.0 / 10000**exponents
        axes = [places[:, None] * speeds for places in type(own).get_position_ids(own, x[:, 0])]
        sines, cosines = ([getattr(axis, name)().repeat(1, 2) for axis in axes] for name in ("sin", "cos"))
        return torch.cat(sines, -1), torch.cat(cosines, -1)


@register_model(builtin("vjepa2"))
class VJepaEncoder(NetworkEncoder):
    """Tokens of a whole clip, (N, D) per sample.

    N are tubelets in time x rows x columns. A pair fills one. Under
    ``corrected`` the last frame is repeated until the last is full (nine
    frames: five steps), ``paper`` drops an incomplete one (four steps).
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        options = spec.options_under(context.protocol)
        found = find_weights(spec, context, weight_layout("vjepa2"))
        self._size = spec.preprocessing(context.protocol).size
        arguments = found.config or library_fields(options["config"], "vjepa2")
        with built_from(found.file, "VJEPA2Model"):
            # The library lays out positions by the size.
            further = {"pred_num_hidden_layers": 0, "crop_size": self._size}
            config = transformers.VJEPA2Config.from_dict({**arguments, **further})
            network: Any = transformers.VJEPA2Model(config)
        del network.predictor
        self._network = with_weights(network, found, lambda: read_renamed(found, "vjepa2"), context.device)
        super().__init__(spec, context, found.identity, network.config.hidden_size)
        self._repeat = options["incomplete_tubelet"] == "repeat the last frame"
        self._tubelet = network.config.tubelet_size
        rotary = Rotary(network.encoder.layer[0].attention)
        for layer in network.encoder.layer:
            layer.attention.apply_rotary_embeddings = rotary
            layer.attention.get_position_ids = lambda *_, **__: None  # they are in the table

    def encode(self, clips: Tensor) -> Latents:
        import torch

        patch = self._network.config.patch_size
        check_frames(self._spec, clips, side=self._size, multiple=patch, least=1 if self._repeat else self._tubelet)
        rest = clips.shape[1] % self._tubelet
        if rest and self._repeat:
            clips = torch.cat([clips, *[clips[:, -1:]] * (self._tubelet - rest)], 1)
        elif rest:
            clips = clips[:, :-rest]
        return Latents(self.run_alone(clips))

    def run(self, clips: Tensor) -> Tensor:
        return self._network.encoder(pixel_values_videos=clips).last_hidden_state


@register_model(builtin("efficientnet-lite0"))
class EfficientNetEncoder(NetworkEncoder):
    """Features of stride 16 of frames: P = T, N = 64, D = 112.

    They are the output of the last block before the map goes from
    8 x 8 to 4 x 4 cells; blocks behind it have no part in them.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import torch

        options, layout = spec.options, weight_layout("efficientnet-lite0")
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise UsageError(
                f"Model '{spec.name}' needs the Python package {error.name}: pip install 'lary[demo]'."
            ) from error
        found = find_weights(spec, context, layout)
        with built_from("the record", "EfficientNet"):
            network = EfficientNet.from_name(options["architecture"])
        network = with_weights(network, found, lambda: read_tensors(found.files, layout), context.device)
        # With channels last, a CPU takes less than half the time.
        self._network = network.to(memory_format=torch.channels_last)
        super().__init__(spec, context, found.identity)
        self._blocks = options["blocks"]

    def encode(self, clips: Tensor) -> Latents:
        check_frames(self._spec, clips, side=self._spec.preprocess.size)
        # Maps of one frame stay in a CPU's cache, a clip's don't.
        return Latents(each_frame(self.run_alone, clips))

    def run(self, images: Tensor) -> Tensor:
        network = self._network
        features = network._swish(network._bn0(network._conv_stem(images)))
        for block in network._blocks[: self._blocks]:
            features = block(features)
        return features.flatten(2).transpose(1, 2)
