"""What each command is asked to do: one frozen record per command, without heavy imports (and `tool_configs`).

None means that the option was left out and the records of model and data set decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lary.types import BenchmarkProtocol

Mode = Literal["image", "video"]
LatentKind = Literal["continuous", "quantized", "noisy"]
Precision = Literal["fp32", "bf16", "fp16"]
DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
RandomWeights = Literal["random"]
ProbePrecision = Literal["fp32", "bf16"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
ProbeType = Literal["mlp", "dit", "ridge"]
ActionMode = Literal["absolute", "relative"]
RelativeFrame = Literal["world", "local"]
ProbeControl = Literal["static-pair", "shuffled-order", "shuffled-targets"]
EngineKind = Literal["local", "ray"]
StoreKind = Literal["npz", "shards"]
LatentDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Extraction of one split.

    Attributes:
        model: Model key.
        dataset: Data set key.
        split: Split of the data set.
        mode: image or video; the data set's record knows, a contradicting one is refused.
        stride: Frames between source and target; the record knows, a contradicting one is refused.
        gpus: CUDA devices, such as 0 or 0,1,2,3: one process each. Without CUDA one CPU process runs.
        input: Table to read in place of LARY_ROOT/data/DATASET_metadata_SPLIT.csv.
        limit: Only the first rows of the table.
        batch_size: Samples per forward pass.
        workers: Processes that read media, per device; default: the cores shared by the devices, at most 8 each.
        read_timeout: Seconds after which a sample that can't be read is given up.
        protocol: corrected computes what the benchmark describes, paper what its published code computes.
        weights: Checkpoint in place of the model's variable: folder, file or hub id, or random: drawn from the seed.
        revision: Revision of a hub checkpoint.
        latent: What a quantized model stores: continuous latents, its codebook rows, or noisy draws as published.
        precision: Arithmetic of the forward pass; fp32, or bf16 and fp16 by autocast.
        compile: Compile the network with torch.compile.
        device: auto takes the CUDA devices of --gpus, or else the CPU.
        seed: Seed of models with random weights.
        store: npz, one file per sample as published, or shards: safetensors files of many rows with an index.
        dtype: Number format of the stored tokens; bfloat16 needs shards.
        pool: Pooling over the tokens of each step before they are stored: none, mean, cls or grid:K.
        shard_rows: Rows per shard.
        overwrite: Replace latents of another extraction in the same folder.
        retry_failed: Only the rows that the failures file of the last run names.
        dry_run: Measure a few samples and tell time, bytes and free disk; nothing is written.
        engine: local, this machine, or ray, the machines of a Ray cluster; needs the extra lary[ray].
        address: Of the Ray cluster; auto is the one that this machine belongs to, local starts one.
    """

    model: str
    dataset: str
    split: str
    mode: Mode | None = None
    stride: int | None = None
    gpus: str | None = None
    input: Path | None = None
    limit: int | None = None
    batch_size: int = 16
    workers: int | None = None
    read_timeout: float = 60.0
    protocol: BenchmarkProtocol = "corrected"
    weights: str | None = None
    revision: str | None = None
    latent: LatentKind | None = None
    precision: Precision = "fp32"
    compile: bool = False
    device: DeviceChoice = "auto"
    seed: int = 0
    store: StoreKind = "npz"
    dtype: LatentDtype = "float32"
    pool: str = "none"
    shard_rows: int = 1024
    overwrite: bool = False
    retry_failed: bool = False
    dry_run: bool = False
    engine: EngineKind = "local"
    address: str = "auto"


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """The latents of one split, as they were asked for.

    Attributes:
        model: Model key.
        dataset: Data set key.
        split: Split of the data set.
        protocol: corrected or paper, as given to extract.
        latent: Kind of latents, as given to extract.
        weights: random, as given to extract.
        pool: Pooling, as given to extract.
    """

    model: str
    dataset: str
    split: str
    protocol: BenchmarkProtocol = "corrected"
    latent: LatentKind | None = None
    weights: RandomWeights | None = None
    pool: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """A classification probe on extracted latents.

    Attributes:
        model: Model key.
        dataset: Data set key.
        splits: Splits drawn anew in place of the published ones, such as by-episode; 'lary datasets KEY' lists them.
        dim: Latent dimension; the latents know, a contradicting one is refused.
        classes: Number of classes; the record knows, a contradicting one is refused.
        gpus: CUDA devices to train on, such as 0 or 0,1: one process each, same protocol. Without CUDA the CPU trains.
        precision: bf16 trains by autocast, fp32 without; default: the preset's where the device has it.
        protocol: corrected picks head and epoch on a held-out tenth, paper on the reported split as published.
        latent: Kind of latents, as given to extract.
        weights: random, as given to extract: latents of the same architecture with random weights.
        pool: Pooling over the tokens of each step, as given to extract; pooled here where only all tokens are stored.
        probe_preset: Size of the probe: paper, or demo for a CPU.
        seed: Seed of weights and sampling.
        seeds: Seeds such as 0,1,2 in place of --seed: one probe each, metrics are their means.
        control: static-pair repeats the first frame, shuffled-order permutes the frames of every sample,
            shuffled-targets trains on the targets of other samples.
        project: Project the latents to this many dimensions at random.
        epochs: Epochs in place of the preset's.
        probe_batch_size: Batch size in place of the preset's, over all devices together.
        tracker: Where losses and metrics are followed: none, tensorboard, wandb or trackio.
        resume: Go on where the same command was interrupted; --no-resume starts over.
        overwrite: Replace the result of another run in the same folder.
    """

    model: str
    dataset: str
    splits: str | None = None
    dim: int | None = None
    classes: int | None = None
    gpus: str | None = None
    precision: ProbePrecision | None = None
    protocol: BenchmarkProtocol = "corrected"
    latent: LatentKind | None = None
    weights: RandomWeights | None = None
    pool: str | None = None
    probe_preset: str = "paper"
    seed: int = 0
    seeds: str | None = None
    control: ProbeControl | None = None
    project: int | None = None
    epochs: int | None = None
    probe_batch_size: int | None = None
    tracker: TrackerName = "none"
    resume: bool = True
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class RegressConfig:
    """A regression probe on extracted latents.

    Attributes:
        model: Model key.
        dataset: Data set key.
        splits: Splits drawn anew in place of the published ones, such as by-episode; 'lary datasets KEY' lists them.
        stride: Frames between source and target; the record knows, a contradicting one is refused.
        mode: image or video; the record knows, a contradicting one is refused.
        model_type: Probe: mlp or dit as published, or ridge, a closed-form linear one.
        action_mode: Target: absolute action chunks, or relative motion between the two images.
        relative_frame: Relative motion as the difference of the steps (world, as published), or as the last pose seen
            from the first one (local).
        sampler_steps: Steps by which the dit draws a chunk: 500 as published, fewer by DDIM.
        gpus: CUDA devices to train on, such as 0 or 0,1: one process each, same protocol; default: the first of
            CUDA_VISIBLE_DEVICES. Without CUDA the CPU trains.
        protocol: corrected picks the epoch on a held-out tenth, paper on the reported split as published.
        latent: Kind of latents, as given to extract.
        weights: random, as given to extract: latents of the same architecture with random weights.
        pool: Pooling over the tokens of each step, as given to extract; pooled here where only all tokens are stored.
        probe_preset: Size of the probe: paper, or demo for a CPU.
        seed: Seed of weights and sampling.
        seeds: Seeds such as 0,1,2 in place of --seed: one probe each, metrics are their means.
        control: static-pair repeats the first frame, shuffled-order permutes the frames of every sample,
            shuffled-targets trains on the targets of other samples.
        project: Project the latents to this many dimensions at random.
        epochs: Epochs in place of the preset's.
        probe_batch_size: Batch size in place of the preset's, over all devices together.
        tracker: Where losses and metrics are followed: none, tensorboard, wandb or trackio.
        resume: Go on where the same command was interrupted; --no-resume starts over.
        overwrite: Replace the result of another run in the same folder.
    """

    model: str
    dataset: str
    splits: str | None = None
    stride: int | None = None
    mode: Mode | None = None
    model_type: ProbeType = "mlp"
    action_mode: ActionMode = "absolute"
    relative_frame: RelativeFrame | None = None
    sampler_steps: int | None = None
    gpus: str | None = None
    protocol: BenchmarkProtocol = "corrected"
    latent: LatentKind | None = None
    weights: RandomWeights | None = None
    pool: str | None = None
    probe_preset: str = "paper"
    seed: int = 42
    seeds: str | None = None
    control: ProbeControl | None = None
    project: int | None = None
    epochs: int | None = None
    probe_batch_size: int | None = None
    tracker: TrackerName = "none"
    resume: bool = True
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Extraction of every split that a probe needs, and the probe.

    Attributes:
        model: Model key.
        dataset: Data set key; its record knows whether its probe classifies or regresses.
        splits: by-episode or by-segment for the drawn splits that keep groups apart; default: the published ones.
        no_store: Encode the frames while the probe is trained; no latents are left on the disk.
        mode: image or video; the data set's record knows, a contradicting one is refused.
        stride: Frames between source and target; the record knows, a contradicting one is refused.
        gpus: CUDA devices, such as 0 or 0,1,2,3. Without CUDA the CPU works.
        limit: Only the first rows of each table.
        batch_size: Samples per forward pass of the model.
        workers: Processes that read media, per device; default: the cores shared by the devices, at most 8 each.
        read_timeout: Seconds after which a sample that can't be read is given up.
        protocol: corrected computes what the benchmark describes, paper what its published code computes.
        weights: Checkpoint in place of the model's variable: folder, file or hub id, or random: drawn from the seed.
        revision: Revision of a hub checkpoint.
        latent: What a quantized model stores: continuous latents, its codebook rows, or noisy draws as published.
        precision: Arithmetic of the model's forward pass; fp32, or bf16 and fp16 by autocast.
        compile: Compile the model's network with torch.compile.
        device: auto takes the CUDA devices of --gpus, or else the CPU.
        model_seed: Seed of models with random weights.
        store: npz, one file per sample as published, or shards: safetensors files of many rows with an index.
        dtype: Number format of the tokens; bfloat16 needs shards.
        pool: Pooling over the tokens of each step before they are stored: none, mean, cls or grid:K.
        shard_rows: Rows per shard.
        engine: Engine of the extraction: local, or ray; needs the extra lary[ray].
        address: Of the Ray cluster; auto is the one that this machine belongs to, local starts one.
        model_type: Regression probe: mlp, dit or ridge.
        action_mode: Target of a regression: absolute action chunks, or relative motion between the two images.
        relative_frame: Axes of relative motion: world or local.
        sampler_steps: Steps by which the dit draws a chunk.
        probe_preset: Size of the probe: paper, or demo for a CPU.
        seed: Seed of the probe's weights and sampling; default: the probe's own.
        seeds: Seeds such as 0,1,2: one probe each, metrics are their means.
        probe_precision: Arithmetic of the training: fp32 or bf16, as the attentive probe has it.
        control: static-pair, shuffled-order or shuffled-targets, as the probes have it.
        project: Project the latents to this many dimensions at random.
        epochs: Epochs in place of the preset's.
        probe_batch_size: Batch size of the probe in place of the preset's.
        tracker: Where to follow the training: none, tensorboard, wandb or trackio.
        resume: Go on after the last kept epoch of this very training.
        overwrite: Replace other latents and the result of another run in the same folders.
    """

    model: str
    dataset: str
    splits: str | None = None
    no_store: bool = False
    mode: Mode | None = None
    stride: int | None = None
    gpus: str | None = None
    limit: int | None = None
    batch_size: int = 16
    workers: int | None = None
    read_timeout: float = 60.0
    protocol: BenchmarkProtocol = "corrected"
    weights: str | None = None
    revision: str | None = None
    latent: LatentKind | None = None
    precision: Precision = "fp32"
    compile: bool = False
    device: DeviceChoice = "auto"
    model_seed: int = 0
    store: StoreKind = "npz"
    dtype: LatentDtype = "float32"
    pool: str = "none"
    shard_rows: int = 1024
    engine: EngineKind = "local"
    address: str = "auto"
    model_type: ProbeType | None = None
    action_mode: ActionMode | None = None
    relative_frame: RelativeFrame | None = None
    sampler_steps: int | None = None
    probe_preset: str = "paper"
    seed: int | None = None
    seeds: str | None = None
    probe_precision: ProbePrecision | None = None
    control: ProbeControl | None = None
    project: int | None = None
    epochs: int | None = None
    probe_batch_size: int | None = None
    tracker: TrackerName = "none"
    resume: bool = True
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Many runs from one file.

    Attributes:
        dry_run: Show the plan and what of it is done; nothing is run.
        engine: local, one run after the other on this machine, or ray: runs as tasks of a Ray cluster.
        address: Of the Ray cluster; auto is the one that this machine belongs to, local starts one.
        gpus_per_run: GPUs that a Ray task gets.
        cpus_per_run: CPU cores that a Ray task gets.
        part: Only the K-th of N parts of the runs, as K/N with K from 1, such as for the tasks of a Slurm array.
    """

    dry_run: bool = False
    engine: EngineKind = "local"
    address: str = "auto"
    gpus_per_run: float = 0.0
    cpus_per_run: float = 1.0
    part: str | None = None


@dataclass(frozen=True, kw_only=True)
class ControlsConfig:
    """A model with its controls; latents that are missing are extracted.

    Attributes:
        model: Model key.
        dataset: Data set key.
        splits: Splits drawn anew in place of the published ones, such as by-episode; 'lary datasets KEY' lists them.
        project: Dimensions of the random projection.
        model_type: Regression probe: mlp, dit or ridge.
        action_mode: Target of a regression: absolute action chunks, or relative motion between the two images.
        relative_frame: Relative motion as the difference of the steps (world, as published), or as the last pose seen
            from the first one (local).
        gpus: CUDA device to work on. Without CUDA the CPU works.
        protocol: corrected or paper, for all runs.
        latent: Kind of latents of the model, as given to extract.
        probe_preset: Size of the probe: paper, or demo for a CPU.
        seeds: Seeds such as 0,1,2: one probe each, metrics are their means. Default: the probe's own seed.
        epochs: Epochs in place of the preset's.
        overwrite: Replace results of other runs in the same folders.
    """

    model: str
    dataset: str
    splits: str | None = None
    project: int = 16
    model_type: ProbeType = "mlp"
    action_mode: ActionMode = "absolute"
    relative_frame: RelativeFrame | None = None
    gpus: str | None = None
    protocol: BenchmarkProtocol = "corrected"
    latent: LatentKind | None = None
    probe_preset: str = "paper"
    seeds: str | None = None
    epochs: int | None = None
    overwrite: bool = False
