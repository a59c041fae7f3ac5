"""Trained latent action models as models: ``lam:FOLDER``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lary.files import digest, file_digest, read_json
from lary.models.lapa import LatentActions
from lary.models.networks import with_weights
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, Weights, with_tuples
from lary.models.tensors import read_tensors, weight_layout
from lary.models.weights import find_weights
from lary.nets import code_rows
from lary.settings import load_settings
from lary.types import LaryError, UsageError, WeightsIdentity, as_path

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, RECORD = "model.safetensors", "training.json"
CURVES = ("step", "perplexity", "loss_noise", "gap", "static_ratio")


def trained_model(name: str) -> ModelSpec | None:
    """The record of ``lam:FOLDER``; None for another form. Raises UsageError."""
    if not name.startswith("lam:"):
        return None
    folder = as_path(name.removeprefix("lam:"))
    file = folder / RECORD
    if not file.is_file():
        raise UsageError(f"{folder} holds no {RECORD}: name the folder that 'lary train lam --out' wrote.")
    record = read_json(file, "record of the training")
    try:
        sizes, dim = record["sizes"], record["sizes"]["dim"]
        keys = ["weights_digest", "backbone", "steps", "options", "verdict"]
        keys += ["features_normed"] * (sizes["patch_size"] == 1)  # earlier versions took them as they are
        trained = {key: record[key] for key in keys}
        trained["manifest"] = digest(repr(record["manifest"]))
        rows = record["curves"]["monitor"]
        few = [*rows[: -1 : -(-len(rows) // 40)], rows[-1]]
        trained["signals"] = rows[-1]
        trained["curves"] = {name: [row[name] for row in few] for name in CURVES}
        preprocess = Preprocess(**with_tuples(record["preprocess"]))
        length = code_rows(sizes["code_seq_len"], int(sizes["image_size"] / sizes["patch_size"]))
        backbone = record["backbone"]["model"]
        data = ", ".join(record["options"]["dataset"])
        about = f"Latent actions on {backbone}, trained for {record['steps']} steps on {data}"
    except Exception as error:
        raise UsageError(f"{file} lacks {error}: train the model anew, by this version.") from error
    return ModelSpec(
        name=name,
        paradigm="general LAM",
        dim=dim,
        preprocess=preprocess,
        weights=Weights(hub=str(folder / WEIGHTS)),
        pair_shape=(length, dim),
        clip_shape=(8, length, dim),
        options={"latent": "continuous", "network": sizes, "trained": trained},
        licence="that of its data",
        grid=0,
        codebook=sizes["codebook_size"],
        description=about,
        factory=TrainedActions,
    )


class TrainedActions(LatentActions):
    """`LatentActions` of a training; random weights leave its backbone as it was."""

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        super().__init__(spec, context)
        self._features, self._encode = trained_backbone(spec, context)

    @staticmethod
    def open(spec: ModelSpec, context: ModelContext, kind: Any = None) -> tuple[Any, WeightsIdentity]:
        """As `LatentActions.open`. Raises LaryError for others than the record's."""
        import torch

        from lary.nets.lam import LatentActionModel

        layout = weight_layout("laq")
        trained = spec.options["trained"]
        found = find_weights(spec, context, replace(layout, files=(WEIGHTS,)))
        tensors, identity = {}, found.identity
        if found.seed is None:
            if file_digest(found.file, 64) != trained["weights_digest"]:
                wrong = f"{found.file} isn't what {RECORD} beside it names"
                raise LaryError(f"{wrong}: resume or train anew.")
            tensors = read_tensors(found.files, layout if kind is None else replace(layout, unused=()))
            identity = replace(identity, digest=digest(identity.digest, trained["backbone"]["digest"]))
        try:
            with torch.device("meta"):
                network = (kind or LatentActionModel)(**spec.options["network"])
        except (TypeError, ValueError, RuntimeError) as error:
            raise LaryError(f"{found.file.with_name(RECORD)} fits no network: {error}.") from error
        return with_weights(network, found, lambda: tensors, "cpu"), identity

    def embed(self, clips: Tensor) -> Tensor:
        """As `LatentActions.embed`, by the backbone of the training."""
        return super().embed(clips) if self._encode is None else self._encode(clips).float()


def trained_backbone(spec: ModelSpec, context: ModelContext) -> tuple[Any, Any]:
    """Network and function of a training's backbone. Raises LaryError for other weights."""
    from lary.lam.configs import TrainLamConfig
    from lary.lam.network import open_backbone

    trained = spec.options["trained"]
    known = TrainLamConfig.__dataclass_fields__
    options = {name: value for name, value in with_tuples(trained["options"]).items() if name in known}
    settings = load_settings(dict(context.settings), environment={})
    found = open_backbone(TrainLamConfig(**options), settings, context.device)
    if found.identity.digest != trained["backbone"]["digest"]:
        raise LaryError(f"The weights of '{found.spec.name}' aren't those of '{spec.name}': restore them.")
    return found.module, found.encode


MODELS.add_family(trained_model)
