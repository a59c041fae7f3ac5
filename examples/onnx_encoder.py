"""A network in an ONNX file, run by ONNX Runtime (pip install onnxruntime), frame by frame.

lary check-model examples/onnx_encoder.py:onnx --weights network.onnx
lary run --plugin examples/onnx_encoder.py --model onnx --weights network.onnx --dataset simarm --probe-preset demo

Its first input are images (n, 3, H, W) float32 of the record's size and normalisation, its first output tokens
(n, N, D), or a map (n, D, h, w); n has to be a free axis.
"""

from pathlib import Path

from lary import ModelSpec, Preprocess, Weights, register_model


@register_model(
    ModelSpec(
        name="onnx",
        paradigm="semantic encoder",
        dim=None,
        preprocess=Preprocess(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        weights=Weights(hint="They are an ONNX file."),
    )
)
class Onnx:
    def __init__(self, spec, context):
        import onnxruntime

        self.file = Path(context.weights)  # hashed: it is the identity of the weights
        providers = ["CUDAExecutionProvider"] * context.device.startswith("cuda") + ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(self.file, providers=providers)
        self.input = self.session.get_inputs()[0].name

    def encode(self, clips):  # (B, T, 3, H, W) float32
        import torch

        # One image at a time, so that tokens don't depend on the batch.
        images = clips.flatten(0, 1).cpu().numpy()
        found = [self.session.run(None, {self.input: image[None]})[0] for image in images]
        tokens = torch.cat([torch.from_numpy(each) for each in found])
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return tokens.unflatten(0, clips.shape[:2])
