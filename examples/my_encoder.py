"""A model of one's own in one file: colour statistics of a coarse grid, frame by frame.

lary check-model examples/my_encoder.py:colour-grid
lary extract --plugin examples/my_encoder.py --model colour-grid --dataset simarm --split train
"""

from lary import Latents, ModelSpec, Preprocess, register_model


@register_model(ModelSpec(name="colour-grid", paradigm="semantic encoder", dim=6, preprocess=Preprocess(size=64)))
class ColourGrid:
    def __init__(self, spec, context):
        import torch  # heavy imports stay inside

        self.torch = torch

    def encode(self, clips):  # (B, T, 3, H, W), preprocessed as the record says
        cells = clips.unfold(3, 16, 16).unfold(4, 16, 16).flatten(-2)  # (B, T, 3, 4, 4, 256)
        tokens = self.torch.cat([cells.mean(-1), cells.std(-1)], dim=2)  # (B, T, 6, 4, 4)
        return Latents(tokens.flatten(3).transpose(2, 3))  # (B, T, N = 16, D = 6)
