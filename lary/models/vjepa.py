"""V-JEPA 2: a video transformer whose tokens each see the whole clip, through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, check_frames, with_weights
from lary.models.preprocess import VJEPA2 as VJEPA2_PREPROCESS
from lary.models.spec import ModelContext, ModelSpec, Weights, register_model
from lary.models.tensors import Layout, Rules, configured_by, cut_joint, read_tensors, rename_keys
from lary.models.weights import Checkpoint, find_weights
from lary.types import Latents

if TYPE_CHECKING:
    import torch

LAYOUT = Layout(
    files=("model.safetensors", "vitl.pt", "original/model.pth"),
    kind=("model_type", "vjepa2"),
    unused=("predictor.",),
    sections=("target_encoder",),
    wrappers=("module.", "backbone."),
)

_VJEPA_BLOCK = r"blocks\.(\d+)"

VJEPA_KEYS: Rules = (
    (r"patch_embed\.proj", "encoder.embeddings.patch_embeddings.proj"),
    (rf"{_VJEPA_BLOCK}\.(norm1|norm2|mlp\.fc1|mlp\.fc2)", r"encoder.layer.\1.\2"),
    (rf"{_VJEPA_BLOCK}\.attn\.(query|key|value|proj)", r"encoder.layer.\1.attention.\2"),
    (r"norm", "encoder.layernorm"),
)
"""``target_encoder`` of V-JEPA 2, its joint projections cut in three, to transformers' VJEPA2Model."""

VJEPA2 = ModelSpec(
    name="vjepa2",
    paradigm="semantic encoder",
    dim=1024,
    weights=Weights(
        variable="VJEPA2_CKPT_PATH", folder="V-JEPA2", hub="facebook/vjepa2-vitl-fpc64-256",
        revision="b3c1679b7c34d3255ef3547f27c7b226aefab26f",
    ),
    preprocess=VJEPA2_PREPROCESS,
    pair_shape=(196, 1024),
    clip_shape=(980, 1024),
    grid=14,
    clip_shape_paper=(784, 1024),
    options={
        "config": {
            "img_size": 224, "patch_size": 16, "num_frames": 16, "tubelet_size": 2, "embed_dim": 1024, "depth": 24,
            "num_heads": 16,
        },
        "incomplete_tubelet": "repeat the last frame",
    },
    options_paper={"incomplete_tubelet": "drop"},
    paper_differences=("tubelets hold two frames and an odd last one is dropped: of nine frames, eight are encoded",),
    notes=(
        "Tokens have no axis of time: a probe adds no temporal embedding to them.",
        "The published code loads weights without a check: tensors that don't fit stay random there, here they stop.",
    ),
    parameters_m=303.89,
    licence="MIT",
    reference="Assran et al. 2025, arXiv 2506.09985",
    description="V-JEPA 2 ViT-L/16, tokens of the target encoder after its final norm",
)  # fmt: skip


VJEPA_NAMES = {
    "img_size": "crop_size", "num_frames": "frames_per_clip", "embed_dim": "hidden_size", "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}  # fmt: skip


def vjepa_arguments(**config: int) -> dict[str, Any]:
    """Arguments of transformers' VJEPA2Config for a configuration in the words of the published code.

    `img_size` and `num_frames` have no part in the arithmetic: rotary positions count the cells of the clip.
    """
    named = {VJEPA_NAMES.get(name, name): value for name, value in config.items()}
    return {**named, "mlp_ratio": 4.0, "layer_norm_eps": 1e-6, "qkv_bias": True}


def empty_vjepa(arguments: Mapping[str, Any], origin: object = "the record") -> Any:
    """VJEPA2Model without memory yet, and without its predictor.

    Raises:
        LaryError: the arguments, which come from `origin`, describe no network.
    """
    import torch
    import transformers

    with configured_by(origin, "VJEPA2Model"), torch.device("meta"):
        config = transformers.VJEPA2Config.from_dict({**arguments, "pred_num_hidden_layers": 0})
        network: Any = transformers.VJEPA2Model(config)
    del network.predictor
    return network


def read_vjepa(found: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under the library's names."""
    tensors = read_tensors(found.files, LAYOUT)
    if found.config is not None:
        return tensors
    return rename_keys(cut_joint(tensors), VJEPA_KEYS)


@register_model(VJEPA2)
class VJepaEncoder(NetworkEncoder):
    """Tokens of a whole clip, (N, D) per sample: N = steps of tubelets x rows x columns, in this order.

    A pair fills one tubelet. Under ``corrected`` the last frame is repeated until the last tubelet is full (nine
    frames: five steps), under ``paper`` an incomplete tubelet is dropped (four steps).
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        options = spec.options_under(context.protocol)
        found = find_weights(spec, context, LAYOUT)
        self._size = spec.preprocessing(context.protocol).size
        arguments = found.config or vjepa_arguments(**options["config"])
        # The library lays out the grid of positions by this size, not by the frames that come.
        network = empty_vjepa({**arguments, "crop_size": self._size}, found.file)
        self._network = with_weights(network, found, lambda: read_vjepa(found), context.device)
        super().__init__(spec, context, found.identity, network.config.hidden_size)
        self._repeat = options["incomplete_tubelet"] == "repeat the last frame"
        self._tubelet: int = network.config.tubelet_size

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W) to tokens (B, N, D) float32.

        Raises:
            LaryError: not clips, frames of another size than the record's, or fewer than a tubelet holds.
        """
        patch: int = self._network.config.patch_size
        check_frames(self._spec, clips, side=self._size, multiple=patch, least=1 if self._repeat else self._tubelet)
        return Latents(self.run_alone(whole_tubelets(clips, self._tubelet, repeat=self._repeat)))

    def run(self, clips: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self._network.encoder(pixel_values_videos=clips).last_hidden_state
        return tokens


def whole_tubelets(clips: torch.Tensor, tubelet: int, *, repeat: bool) -> torch.Tensor:
    """Clips (B, T, ...) with T a multiple of `tubelet`: the last frame repeated, or the rest dropped."""
    import torch

    rest = clips.shape[1] % tubelet
    if not rest:
        return clips
    if not repeat:
        return clips[:, : clips.shape[1] - rest]
    return torch.cat([clips, clips[:, -1:].expand(-1, tubelet - rest, *clips.shape[2:])], dim=1)
