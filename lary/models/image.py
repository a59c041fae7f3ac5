"""DINOv2, DINOv3 and SigLIP 2, of transformers, each frame by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lary.models.networks import NetworkEncoder, built_from, check_frames, transformers_model
from lary.models.preprocess import mix_planes
from lary.models.spec import ModelContext, ModelSpec, builtin, builtin_tables, register_model, with_tuples
from lary.models.tensors import Layout, Tensors, read_tensors
from lary.models.weights import find_weights, read_config
from lary.types import JsonDict, Latents, UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Backbone:
    """How transformers runs checkpoints of one ``model_type``.

    Attributes:
        model: class of transformers.
        leading: tokens before the patches, but for registers.
        patches: the model wants flattened patches.
        one_size: it takes the configuration's image size alone.
        prefix: of the image tower's keys beside a text tower.
        unused: prefixes of keys that patch tokens don't need.
    """

    model: str
    leading: int
    unused: tuple[str, ...]
    patches: bool = False
    one_size: bool = False
    prefix: str = ""


def backbone_of(kind: str) -> Backbone:
    """The entry of ``records.json`` for a ``model_type``."""
    return Backbone(**with_tuples(builtin_tables()["backbones"][kind.removesuffix("_vision_model")]))


@register_model(builtin("dinov2-origin"), builtin("dinov3-origin"), builtin("siglip2-origin"))
class ImageEncoder(NetworkEncoder):
    """Patch tokens of every frame, after the backbone's final norm: P = T.

    N are the patches in rows, D is that of the checkpoint's ``config.json``.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        options = spec.options_under(context.protocol)
        found = find_weights(spec, context)
        config = options["config"] if found.seed is not None else read_config(found.folder)
        kind = config["model_type"]
        if kind not in options["accepts"]:
            expected = " or ".join(options["accepts"])
            raise UsageError(f"Weights of '{spec.name}': {found.folder} holds a {kind} model, expected {expected}.")
        backbone = backbone_of(kind)
        model_class = getattr(transformers, backbone.model)
        with built_from(found.folder, backbone.model):
            settings = model_class.config_class.from_dict(image_tower(config))
        self._side = spec.preprocessing(context.protocol).size
        if backbone.one_size and settings.image_size != self._side:
            raise UsageError(
                f"Weights of '{spec.name}': {found.folder} is for images of {settings.image_size} pixels, "
                f"the record prepares {self._side}."
            )

        def read() -> Tensors:
            tensors = read_tensors(found.files, Layout(unused=backbone.unused))
            prefix = backbone.prefix  # files of the image tower alone lack it
            return {prefix + key.removeprefix(prefix): value for key, value in tensors.items()}

        self._model = transformers_model(model_class, settings, found, read, context.device, backbone.unused)
        super().__init__(spec, context, found.identity, settings.hidden_size)
        self._mix_planes = options["mix_planes"]
        self._leading = backbone.leading + int(getattr(settings, "num_register_tokens", 0) or 0)
        self._class_token = backbone.leading > 0
        self._patch = settings.patch_size if backbone.patches else None

    def encode(self, clips: Tensor) -> Latents:
        """Clips to tokens (B, T, N, D), class tokens (B, T, D). Raises LaryError."""
        check_frames(self._spec, clips, side=self._side)
        tokens = self.run_alone(mix_planes(clips) if self._mix_planes else clips)
        return Latents(tokens[:, :, self._leading :], cls=tokens[:, :, 0] if self._class_token else None)

    def run(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to all tokens (B, T, leading + N, D)."""
        images = clips.flatten(0, 1)
        inputs = patch_inputs(images, self._patch) if self._patch else {"pixel_values": images}
        return self._model(**inputs).last_hidden_state.unflatten(0, clips.shape[:2])


def image_tower(config: JsonDict) -> JsonDict:
    """The image tower's part of a configuration, without the pooling head."""
    tower = dict(config.get("vision_config", config))
    return {**tower, "vision_use_head": False} if "siglip" in config["model_type"] else tower


def patch_inputs(images: Tensor, patch: int) -> Tensors:
    """Inputs of a model of any resolution: images (B, 3, H, W) in patches."""
    import torch

    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images[:, :, : rows * patch, : columns * patch].reshape(batch, channels, rows, patch, columns, patch)
    return {
        "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),  # (B, N, patch * patch * 3)
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int32, device=images.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(batch, 2),
    }
