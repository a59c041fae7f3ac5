"""A model that runs in another process, such as in another Python environment: frames go through its pipes.

lary check-model examples/subprocess_encoder.py:elsewhere
lary run --plugin examples/subprocess_encoder.py --model elsewhere --dataset simarm --probe-preset demo

The other process needs NumPy alone: put its interpreter into ELSEWHERE_PYTHON, and your network into `serve`.
"""

import os
import sys
from pathlib import Path


def serve(stdin, stdout):
    """What the other process does: arrays in, arrays out, until its input ends."""
    import numpy as np

    while len(head := stdin.read(20)) == 20:
        batch, frames, _, height, width = shape = np.frombuffer(head, "<i4").tolist()
        clips = np.frombuffer(stdin.read(int(np.prod(shape))), np.uint8).reshape(shape)
        # In place of a network: colours of an 8 x 8 grid. Tokens are (B, P, N, D) float32.
        cells = clips.reshape(batch, frames, 3, 8, height // 8, 8, width // 8).mean((4, 6), dtype=np.float32)
        tokens = np.ascontiguousarray(cells.reshape(batch, frames, 3, 64).swapaxes(2, 3)) / 255
        stdout.write(np.array(tokens.shape, "<i4").tobytes() + tokens.tobytes())
        stdout.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
    sys.exit()

from lary import ModelSpec, Preprocess, register_model  # noqa: E402 (the other process has no lary)


@register_model(
    ModelSpec(name="elsewhere", paradigm="pixel encoder", dim=3, preprocess=Preprocess(size=64, dtype="uint8"))
)
class Elsewhere:
    def __init__(self, spec, context):
        import subprocess

        self.code = Path(__file__)  # files in attributes of the type Path are the identity of the weights
        python = os.environ.get("ELSEWHERE_PYTHON", sys.executable)
        self.process = subprocess.Popen([python, self.code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def encode(self, clips):  # (B, T, 3, 64, 64) uint8, as the record says
        import numpy as np
        import torch

        clips = np.ascontiguousarray(clips.cpu().numpy())
        self.process.stdin.write(np.array(clips.shape, "<i4").tobytes() + clips.tobytes())
        self.process.stdin.flush()
        shape = np.frombuffer(self.process.stdout.read(16), "<i4").tolist()
        assert len(shape) == 4, "the other process ended; its message is above"
        tokens = np.frombuffer(self.process.stdout.read(4 * int(np.prod(shape))), np.float32)
        return torch.from_numpy(tokens.reshape(shape).copy())

    def __del__(self):
        if hasattr(self, "process"):
            self.process.communicate()  # closes its input, at whose end it ends
