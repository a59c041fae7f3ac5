"""Hours and terabytes of each model's whole row on one H100, computed from stated assumptions, as a Markdown table.

    python docs/night.py

Nothing here is measured on a GPU. Work per pair is that of docs/speed.md on a CPU at 0.16 TFLOP/s, which gives 0.32
TFLOP for two frames of a ViT-L, as its arithmetic does. Rates are assumptions: no pauses, reading beside them.
"""

CLIPS, PAIRS, TRAINED, FRAMES, EPOCHS = 1.19e6, 0.62e6, 0.833e6, 9, 20
CPU, TRANSFORMER, CONVOLUTION, FP32, PROBE = 0.16e12, 400e12, 150e12, 45e12, 350e12
TOKEN = 0.7e9
"""FLOP of five heads in training, per token; half as much again for the attention over a thousand and more."""

MODELS = {
    # seconds of a pair on the CPU, pairs that nine frames cost as much as, FLOP/s, steps of a clip, tokens, D
    "dinov2-origin": (2.01, 4.5, TRANSFORMER, 9, 256, 1024),
    "dinov3-origin": (1.71, 4.5, TRANSFORMER, 9, 196, 1024),
    "siglip2-origin": (0.47, 4.5, TRANSFORMER, 9, 196, 768),
    "lapa": (0.33, 8.0, TRANSFORMER, 8, 16, 1024),
    "dinov2": (2.63, 5.3, TRANSFORMER, 8, 16, 1024),
    "dinov3": (2.25, 5.3, TRANSFORMER, 8, 16, 1024),
    "siglip2": (0.76, 5.8, TRANSFORMER, 8, 16, 1024),
}


def row(name: str, seconds: float, pairs: float, rate: float, steps: int, tokens: int, dim: int) -> str:
    """A line of the table: hours of the forward pass, of the classification probe, and TB in float16."""
    work = CPU * seconds * (pairs * CLIPS + PAIRS)
    count = steps * tokens
    probe = EPOCHS * TRAINED * TOKEN * count * (1.5 if count > 1000 else 1.0) / PROBE
    stored = 2 * dim * tokens * (steps * CLIPS + (2 if steps == FRAMES else 1) * PAIRS)
    bandwidth = EPOCHS * TRAINED * 2 * dim * count
    cells = (work / rate / 3600, work / FP32 / 3600, probe / 3600, stored / 1e12, bandwidth / 1e12)
    return f"| {name} | " + " | ".join(f"{cell:.1f}" if cell >= 0.1 else "< 0.1" for cell in cells) + " |"


HEAD = ("model", "forward bf16, h", "forward fp32, h", "probe of clips, h", "store, TB", "read by it, TB")

if __name__ == "__main__":
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for model, facts in MODELS.items():
        print(row(model, *facts))
