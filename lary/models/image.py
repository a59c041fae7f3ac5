"""Image backbones, each frame by itself: DINOv2, DINOv3 and SigLIP 2 through transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lary.models.backbones import (
    DINOV2_LARGE,
    DINOV2_WEIGHTS,
    DINOV3_LARGE,
    DINOV3_WEIGHTS,
    SIGLIP2_BASE,
    SIGLIP2_WEIGHTS,
)
from lary.models.network import tell_dim
from lary.models.preprocess import CUBIC_224, CUBIC_224_IMAGENET, CUBIC_224_SIGNED, mix_planes
from lary.models.randomly import draw_transformers
from lary.models.running import check_frames, run_alone
from lary.models.spec import ModelContext, ModelSpec, register_model
from lary.models.tensors import configured_by
from lary.models.weights import Source, find_weights, load_transformers, read_config, read_tensors
from lary.types import Latents, UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Backbone:
    """How transformers runs checkpoints of one ``model_type``.

    Attributes:
        model: class of transformers.
        leading: tokens before the patches, besides the register tokens that the configuration counts.
        patches: the model wants flattened patches instead of an image.
        one_size: position embeddings exist for the configuration's image size alone.
        prefix: of the image tower's keys in a file that holds a text tower too.
        unused: beginnings of keys on which the patch tokens don't depend; they may be missing and aren't read.
    """

    model: str
    leading: int
    patches: bool = False
    one_size: bool = False
    prefix: str = ""
    unused: tuple[str, ...] = ()


_MASK = ("embeddings.mask_token",)
_TEXT_AND_POOLING = ("text_model.", "logit_scale", "logit_bias", "head.", "vision_model.head.")
_SIGLIP = Backbone("SiglipVisionModel", leading=0, one_size=True, prefix="vision_model.", unused=_TEXT_AND_POOLING)
_SIGLIP2 = Backbone("Siglip2VisionModel", leading=0, patches=True, prefix="vision_model.", unused=_TEXT_AND_POOLING)

BACKBONES = {
    "dinov2": Backbone("Dinov2Model", leading=1, unused=_MASK),
    "dinov2_with_registers": Backbone("Dinov2WithRegistersModel", leading=1, unused=_MASK),
    "dinov3_vit": Backbone("DINOv3ViTModel", leading=1, unused=_MASK),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
}

_MIXED = "frames are reshaped, not permuted: each image mixes colour planes of several frames"

DINOV2 = ModelSpec(
    name="dinov2-origin",
    paradigm="semantic encoder",
    dim=1024,
    weights=DINOV2_WEIGHTS,
    pair_shape=(2, 256, 1024),
    clip_shape=(9, 256, 1024),
    preprocess=CUBIC_224_IMAGENET,
    preprocess_paper=CUBIC_224_SIGNED,
    options={
        "accepts": ("dinov2", "dinov2_with_registers"), "mix_planes": False,
        "config": {"model_type": "dinov2", **DINOV2_LARGE},
    },
    options_paper={"mix_planes": True},
    paper_differences=(_MIXED, "pixels are x * 2 - 1 instead of ImageNet's normalisation"),
    notes=("Checkpoints with register tokens are accepted too; class and register tokens are left out.",),
    parameters_m=304.37,
    licence="Apache-2.0",
    reference="Oquab et al. 2023, arXiv 2304.07193",
    description="DINOv2 ViT-L/14, patch tokens of each frame",
    class_token=True,
    in_demo=True,
)  # fmt: skip

DINOV3 = ModelSpec(
    name="dinov3-origin",
    paradigm="semantic encoder",
    dim=1024,
    weights=DINOV3_WEIGHTS,
    pair_shape=(2, 196, 1024),
    clip_shape=(9, 196, 1024),
    preprocess=CUBIC_224_IMAGENET,
    preprocess_paper=CUBIC_224_SIGNED,
    options={
        "accepts": ("dinov3_vit",), "mix_planes": False, "config": {"model_type": "dinov3_vit", **DINOV3_LARGE},
    },
    options_paper={"mix_planes": True},
    paper_differences=(_MIXED, "pixels are x * 2 - 1 instead of ImageNet's normalisation"),
    notes=("Class and register tokens are left out. The hub's repository is gated: ask for access on its page.",),
    parameters_m=303.13,
    licence="DINOv3 License",
    reference="Siméoni et al. 2025, arXiv 2508.10104",
    description="DINOv3 ViT-L/16, patch tokens of each frame",
    class_token=True,
)  # fmt: skip

SIGLIP2 = ModelSpec(
    name="siglip2-origin",
    paradigm="semantic encoder",
    dim=768,
    weights=SIGLIP2_WEIGHTS,
    pair_shape=(2, 196, 768),
    clip_shape=(9, 196, 768),
    preprocess=CUBIC_224_SIGNED,
    preprocess_paper=CUBIC_224,
    options={
        "accepts": ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"), "mix_planes": False,
        "config": {"model_type": "siglip_vision_model", **SIGLIP2_BASE},
    },
    options_paper={"mix_planes": True},
    paper_differences=(_MIXED, "pixels stay in [0, 1] instead of x * 2 - 1"),
    notes=("The paper's siglip2 row is the latent action model on these tokens, not this encoder.",),
    parameters_m=85.80,
    licence="Apache-2.0",
    reference="Tschannen et al. 2025, arXiv 2502.14786",
    description="Image tower of SigLIP 2 base, patch 16, without its pooling head: patch tokens of each frame",
)  # fmt: skip


@register_model(DINOV2, DINOV3, SIGLIP2)
class ImageEncoder:
    """Patch tokens of every frame, after the backbone's final norm: P = T, N patches in rows, D of the checkpoint.

    The checkpoint's ``config.json`` decides about architecture, size and leading tokens. A checkpoint of another
    size than the record's is run, and said so: the latents carry its D and its digest.

    Attributes:
        dim: D.
        identity: names the weights and their configuration.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        options = spec.options_under(context.protocol)
        source = find_weights(spec, context)
        config = options["config"] if source.seed is not None else read_config(source.folder)
        kind = config["model_type"]
        if kind not in options["accepts"]:
            expected = " or ".join(options["accepts"])
            raise UsageError(f"Weights of '{spec.name}': {source.folder} holds a {kind} model, expected {expected}.")
        backbone = BACKBONES[kind]
        model_class = getattr(transformers, backbone.model)
        with configured_by(source.folder, backbone.model):
            settings = model_class.config_class.from_dict(image_tower(config))
        self._side: int = spec.preprocessing(context.protocol).size
        if backbone.one_size and settings.image_size != self._side:
            raise UsageError(
                f"Weights of '{spec.name}': {source.folder} is for images of {settings.image_size} pixels, "
                f"the record prepares {self._side}."
            )
        if source.seed is not None:
            self._model = draw_transformers(model_class, settings, source.seed)
        else:
            self._model = load_backbone(backbone, model_class, settings, source)
        self._model.to(context.device)
        self._spec, self._device = spec, context.device
        self._mix_planes: bool = options["mix_planes"]
        self._leading = backbone.leading + int(getattr(settings, "num_register_tokens", 0) or 0)
        self._class_token = backbone.leading > 0
        self._patch: int | None = settings.patch_size if backbone.patches else None
        self.dim: int = settings.hidden_size
        self.identity = source.identity
        tell_dim(spec, self.dim, source.folder)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W) to tokens (B, T, N, D) and class tokens (B, T, D) float32, on its device.

        Raises:
            LaryError: not clips, or frames of another size than the record's.
        """
        import torch

        check_frames(self._spec, clips, side=self._side)
        if self._mix_planes:
            clips = mix_planes(clips)
        tokens = run_alone(self._tokens, clips.to(self._device, torch.float32))
        cls = tokens[:, :, 0] if self._class_token else None
        return Latents(tokens[:, :, self._leading :], cls=cls)

    def _tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, T, 3, H, W) to all tokens (B, T, leading + N, D)."""
        images = clips.flatten(0, 1)
        inputs = {"pixel_values": images} if self._patch is None else patch_inputs(images, self._patch)
        tokens: torch.Tensor = self._model(**inputs).last_hidden_state
        return tokens.reshape(*clips.shape[:2], *tokens.shape[1:])


def load_backbone(backbone: Backbone, model_class: Any, settings: Any, source: Source) -> torch.nn.Module:
    """The image tower with the weights of a checkpoint. Raises LaryError where they don't fit."""
    tensors = read_tensors(source.files, backbone.unused)
    if backbone.prefix:
        tensors = {backbone.prefix + key.removeprefix(backbone.prefix): value for key, value in tensors.items()}
    return load_transformers(model_class, settings, tensors, unused=backbone.unused, folder=source.folder)


def image_tower(config: dict[str, Any]) -> dict[str, Any]:
    """The image tower's part of a configuration, without its pooling head, which the patch tokens don't pass."""
    tower = dict(config.get("vision_config", config))
    return {**tower, "vision_use_head": False} if "siglip" in config["model_type"] else tower


def patch_inputs(images: torch.Tensor, patch: int) -> dict[str, torch.Tensor]:
    """Inputs of a model of variable resolution: images (B, 3, H, W) cut into patches (B, N, patch * patch * 3)."""
    import torch

    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images[:, :, : rows * patch, : columns * patch].reshape(batch, channels, rows, patch, columns, patch)
    return {
        "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch * patch * channels),
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int32, device=images.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(batch, 2),
    }
