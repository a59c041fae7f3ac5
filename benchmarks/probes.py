"""Samples per second of probe training on this machine, beside plain loops and what its arithmetic allows.

    python benchmarks/probes.py [--parts classify mlp dit] [--precisions fp32 bf16] [--repeats 3]
    python benchmarks/probes.py --parts mlp --latent 2 256 1024      # 2.1 billion weights: says what it needs

Ways of training the same networks on the same data in memory, which take turns:

(a) ours: the training loop of `lary classify` or `lary regress`;
(b) plain: what one writes first. A separate loop for each head (classification: five), whole batches, autograd and
    AdamW as they come, activations computed again in the backward pass (torch.utils.checkpoint);
(c) bound: matrix products alone, of the sizes and with as many operations as (a) has.

Samples per second count a sample once for all heads together. Times are of the clock; with --cpu-seconds of processor
time, which other programs on a busy machine don't count in. Every part runs in a process of its own.

bfloat16 is worth having where the processor multiplies it (AMX, AVX-512 BF16, CUDA); elsewhere it is emulated and slow,
which is why ours trains in float32 there unless `--precision bf16` says otherwise. The lines `ours / plain` and
`bound / plain` compare the fastest precision of ours, and what its arithmetic allows, with each one of the plain loop.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.types import UsageError

if TYPE_CHECKING:
    import torch

DEFAULT_LATENTS = {"classify": (8, 16, 1024), "mlp": (1, 49, 256), "dit": (1, 49, 256)}
CLASSES = 54
CHUNK = (10, 7)
Way = Callable[[], None]


@dataclass(frozen=True)
class Task:
    """One part on one precision: ways of training, each over `samples`, and what (a) computes for one of them."""

    ours: Way
    plain: Way
    bound: Way
    samples: int
    operations: float


def main() -> None:
    """Measure every part and precision in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=tuple(DEFAULT_LATENTS), default=list(DEFAULT_LATENTS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--ways", nargs="+", choices=("ours", "plain", "bound"), default=["ours", "plain", "bound"])
    parser.add_argument("--latent", nargs="+", type=int, help="shape of a sample's tokens; default: by part")
    parser.add_argument("--batch", type=int, help="samples per batch; default: 64 (classify), 256 (mlp, dit)")
    parser.add_argument("--batches", type=int, default=1, help="batches per repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--preset", default="paper", help="widths of the probes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="count processor time instead of the clock's")
    parser.add_argument("--inside", nargs=2, metavar=("PART", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(*options.inside, options)))
        return
    for part in options.parts:
        compare(part, options)


def compare(part: str, options: argparse.Namespace) -> None:
    """Print the table of one part."""
    precisions = options.precisions if part == "classify" else ["fp32"]  # the published regression trains in float32
    shape = tuple(options.latent or DEFAULT_LATENTS[part])
    print(f"{part}, latents of {' x '.join(map(str, shape))}, preset {options.preset}")
    rows: dict[str, dict[str, float]] = {}
    for precision in precisions:
        command = [sys.executable, __file__, *sys.argv[1:], "--inside", part, precision]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        if "refused" in found:
            print(f"  {found['refused']}\n")
            return
        rows[precision] = found
        for way in options.ways:
            rate = found[way]
            speed = f"{rate * found['operations'] / 1e9:8.1f} GFLOP/s" if way != "plain" else ""
            print(f"  {precision} {way:8} {rate:10.3f} samples/s {speed}", flush=True)
    if {"ours", "plain"} <= set(options.ways):
        best = max(rows, key=lambda precision: rows[precision]["ours"])
        for precision, found in rows.items():
            print(f"  ours in {best} / plain in {precision}: {rows[best]['ours'] / found['plain']:.2f}")
            if "bound" in options.ways:
                print(f"  bound in {best} / plain in {precision}: {rows[best]['bound'] / found['plain']:.2f}")
    print()


def measure(part: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of each way, medians over the repeats, and operations per sample."""
    from lary.runtime import pick_devices

    device = pick_devices(None, options.device)[0]
    shape = tuple(options.latent or DEFAULT_LATENTS[part])
    batch = options.batch or (64 if part == "classify" else 256)
    try:
        if part == "classify":
            task = classification(shape, batch, batch * options.batches, precision, device, options.preset)
        else:
            task = regression(part, shape, batch, batch * options.batches, device, options.preset)
    except UsageError as error:
        return {"refused": str(error)}
    ways = {name: getattr(task, name) for name in options.ways}
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            started = clock()
            ways[name]()
            wait(device)
            if repeat:  # the first one warms up
                rates[name].append(task.samples / (clock() - started))
    return {name: statistics.median(values) for name, values in rates.items()} | {"operations": task.operations}


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


class InMemory:
    """Latents (n, *shape) float32 drawn at random."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._tokens = np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)
        self.shape = shape

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, rows: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Tokens of `rows`."""
        return self._tokens[np.asarray(rows, dtype=np.int64)]


def classification(shape: tuple[int, ...], batch: int, samples: int, precision: str, device: str, preset: str) -> Task:
    """Five heads of the attentive probe."""
    import torch
    from torch.nn.functional import cross_entropy

    from lary.probes.classify import ClassifierInputs, ClassifierTraining
    from lary.probes.outcome import SampleColumns
    from lary.probes.presets import PRESETS
    from lary.probes.training import Session

    settings = replace(PRESETS.get(preset).classifier, batch_size=batch, standardise=False)
    half = precision == "bf16"
    source, labels = InMemory(samples, shape), np.arange(samples, dtype=np.int64) % CLASSES
    rows = np.arange(samples, dtype=np.int64)
    names, columns = tuple(map(str, range(CLASSES))), SampleColumns((), (), (), ())
    inputs = ClassifierInputs(source, labels, source, labels, columns, names)
    session = Session(protocol="paper", seed=0, device=device, precision=precision)
    training = ClassifierTraining(inputs, replace(settings, bfloat16=half), session)
    training.build()  # checks the memory that is needed
    at_once = training.at_once

    def ours() -> None:
        training.step = 0
        training.train_epoch({}, rows)

    networks = [training.make_head().to(device) for _ in settings.heads]
    optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-4) for network in networks]

    @torch_attention()
    def plain() -> None:
        for network, optimizer in zip(networks, optimizers, strict=True):
            for start in range(0, samples, batch):
                tokens = torch.from_numpy(source.read(rows[start : start + batch])).to(device)
                targets = torch.from_numpy(labels[start : start + batch]).to(device)
                optimizer.zero_grad()
                with torch.autocast(torch.device(device).type, torch.bfloat16, half):
                    loss = cross_entropy(checkpointed(network, tokens), targets, label_smoothing=0.1)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    sizes = products_of_head(settings, shape)
    operations = len(settings.heads) * sum(2.0 * n * k * times for n, k, times in sizes) * 3 * math.prod(shape[:-1])
    dtype = torch.bfloat16 if half else torch.float32
    length = math.prod(shape[:-1])
    bound = products(sizes, length * at_once, samples / at_once * len(settings.heads), dtype, device)
    return Task(ours, plain, bound, samples, operations)


@contextmanager
def torch_attention() -> Iterator[None]:
    """In here the probe's attention is torch's for every length, as one writes it first."""
    from lary.nets import spacetime

    kept, spacetime.SHORT = spacetime.SHORT, 0
    try:
        yield
    finally:
        spacetime.SHORT = kept


def checkpointed(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The attentive probe whose blocks are computed again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    own = network.classifier
    x = network.projector(tokens)
    if x.ndim == 4:
        x = (x + own.temporal_embed[:, : x.shape[1]]).flatten(1, 2)
    for block in own.pooler.blocks:
        x = checkpoint(block, x, use_reentrant=False)
    cross, query = own.pooler.cross_attention_block, own.pooler.query_tokens.expand(len(x), -1, -1)
    query = query + cross["xattn"](query, cross["norm1"](x))
    pooled = query + cross["mlp"](cross["norm2"](query))
    logits: torch.Tensor = own.linear(pooled.squeeze(1))
    return logits


def products_of_head(settings: Any, shape: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """Matrix products of a head's forward pass over one token, as (outputs, inputs, how many)."""
    width, blocks, length = settings.model_dim, settings.depth - 1, math.prod(shape[:-1])
    return [
        (width, shape[-1], 1.0), (3 * width, width, blocks), (width, width, blocks), (4 * width, width, blocks),
        (width, 4 * width, blocks), (length, width, 2.0 * blocks), (2 * width, width, 1.0),
    ]  # fmt: skip


def products(sizes: list[tuple[int, int, float]], rows: int, passes: float, dtype: torch.dtype, device: str) -> Way:
    """Products of (rows, inputs) by (inputs, outputs) and the two of the backward pass, `passes` times."""
    import torch

    largest_in, largest_out = max(k for _, k, _ in sizes), max(n for n, _, _ in sizes)
    left = torch.randn(rows, largest_in).to(device, dtype)
    right = torch.randn(rows, largest_out).to(device, dtype)

    def run() -> None:
        for outputs, inputs, times in sizes:
            weight = torch.empty(outputs, inputs, dtype=dtype, device=device).fill_(0.01)
            x, y = left[:, :inputs].contiguous(), right[:, :outputs].contiguous()
            for _ in range(round(times * passes)):
                x @ weight.T  # forward
                y @ weight  # gradient of the input
                y.T @ x  # gradient of the weight

    with torch.no_grad():
        return run


def regression(part: str, shape: tuple[int, ...], batch: int, samples: int, device: str, preset: str) -> Task:
    """The MLP or the DiT probe; the bound counts the products that can't be left out of a step."""
    import torch
    from torch.utils.checkpoint import checkpoint

    from lary.probes.presets import PRESETS
    from lary.probes.regress import RegressorInputs, RegressorTraining
    from lary.probes.training import Session

    record = PRESETS.get(preset)
    settings: Any = replace(record.dit if part == "dit" else record.regressor, batch_size=batch)
    source, rows = InMemory(samples, shape), np.arange(samples, dtype=np.int64)
    chunks = np.random.default_rng(1).standard_normal((samples, *CHUNK)).astype(np.float32)
    targets = chunks.reshape(samples, -1)
    session = Session(protocol="paper", seed=0, device=device)
    training = RegressorTraining(RegressorInputs(source, chunks, tuple(map(str, rows)), {}, (), {}), settings, session)
    training.build()  # checks the memory that is needed
    # one network for both ways: two of the largest would not fit
    network, fused = training.network.train(), training.optimizer

    def ours() -> None:
        training.train_epoch(rows)

    def plain_loss(tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if part == "mlp":
            model: Any = network.model
            x = torch.relu(
                checkpoint(lambda z: model.fc1(model.layer_norm1(z)), tokens.flatten(1), use_reentrant=False)
            )
            for block in model.mlp_resnet_blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return torch.nn.functional.huber_loss(model.fc2(model.layer_norm2(x)), wanted)
        return plain_dit_loss(network, tokens, wanted)

    def plain() -> None:
        for start in range(0, samples, batch):
            tokens = torch.from_numpy(source.read(rows[start : start + batch])).to(device)
            fused.zero_grad()
            plain_loss(tokens, torch.from_numpy(targets[start : start + batch]).to(device)).backward()  # type: ignore[no-untyped-call]
            fused.step()

    size = math.prod(shape)
    if part == "mlp":
        wide = settings.hidden_dim
        others = [(wide, wide, float(settings.num_blocks)), (math.prod(CHUNK), wide, 1.0)]
        per_sample = 1
    else:
        wide = settings.hidden_dim
        depth = float(settings.depth)
        others = [(3 * wide, wide, depth), (wide, wide, depth), (4 * wide, wide, depth), (wide, 4 * wide, depth)]
        per_sample = CHUNK[0] + 1
    passes = samples / batch
    bound_others = products(others, batch * per_sample, passes, torch.float32, device)
    bound_first = first_products(network, source, rows, batch, device, wide, size)

    def bound() -> None:
        bound_first()
        bound_others()

    operations = 4.0 * wide * size + 6.0 * per_sample * sum(n * k * times for n, k, times in others)
    return Task(ours, plain, bound, samples, operations)


def first_products(network: Any, source: InMemory, rows: Any, batch: int, device: str, wide: int, size: int) -> Way:
    """The two products of the first layer, with its own weights: another set of the largest would not fit."""
    import torch

    weight = max(network.parameters(), key=lambda parameter: parameter.numel()).detach()
    if weight.shape != (wide, size):
        weight = next(each.detach() for each in network.parameters() if each.shape == (wide, size))

    def run() -> None:
        for start in range(0, len(rows), batch):
            x = torch.from_numpy(source.read(rows[start : start + batch])).to(device).flatten(1)
            y = x @ weight.T
            y.T @ x

    return run


def plain_dit_loss(network: Any, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The DiT's loss as one writes it first: latents replaced before the layer, blocks computed again."""
    import torch
    from torch.utils.checkpoint import checkpoint

    from lary.probes.dit import CONDITION_DROPOUT, TRAINING_STEPS, add_noise, plain_norm, timestep_features

    dit = network.dit
    action = wanted.reshape(-1, *network.shape)
    noise = torch.randn_like(action)
    times = torch.randint(TRAINING_STEPS, (len(action),), device=action.device)
    dropped = torch.rand(len(action), 1, device=action.device) < CONDITION_DROPOUT
    latents = torch.where(dropped, dit.z_embedder.uncondition, tokens.flatten(1))
    condition = dit.t_embedder["mlp"](timestep_features(times)) + dit.z_embedder.linear(latents)
    noisy = add_noise(action, noise, times)
    x = torch.cat([condition[:, None], dit.x_embedder(noisy)], dim=1) + dit.positional_embedding
    for block in dit.blocks:
        x = checkpoint(block, x, use_reentrant=False)
    predicted = dit.final_layer(plain_norm(x))[:, 1:]
    return torch.nn.functional.huber_loss(predicted, noise)


if __name__ == "__main__":
    main()
