"""Recipes: the typed configuration of a run.

A recipe is a YAML file of the dataclasses below. jsonargparse types it, explains it (``--help``), refuses unknown keys
and takes overrides: ``--optim.lr 1e-4``; ``--teachers.length 512`` sets a field of the last teacher; ``--teachers
'[]'`` empties the list; fields that a list of as many items as the recipe has does not name stay as they were. Settings
of the DeepSpeed engine live in ds_configs/ and nowhere here; learning rate, batch, steps and clipping live here and
nowhere there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import yaml

Strategy = Literal[
    "tide_cross", "tide_shared",
    "calm", "reverse_calm", "reverse_kl_calm", "calm_tidal", "reverse_calm_tidal",
    "kl", "reverse_kl", "tidal", "reverse_tidal",
]  # fmt: skip


Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "prompt_response"]

Maskable = Literal["all", "last"]

OnBadRow = Literal["fail", "drop"]

Weights = Literal["pretrained", "random"]

ExportFormat = Literal["transformers", "sdar", "llada2"]


@dataclass
class Source:
    """Chat rows to train on."""

    path: str
    """JSONL or JSON (also .gz, .zst) or Parquet file, folder of `datasets.save_to_disk`, or hub name of a dataset."""
    name: str
    """Written into every aligned row, for per-source statistics."""
    weight: float = 1.0
    """Share of the rows used: 0.5 takes every second row, 2.0 takes each row twice."""
    config: str = ""
    """Configuration of a hub dataset that has several (`all` of SmolTalk); `*` takes all of them."""
    split: str = "train"
    """Split of a hub or saved dataset."""
    format: Format = "auto"
    """Shape of the rows; auto = as the columns show. docs/data.md has the list."""
    holdout: float = 0.0
    """Share of the rows that is drawn (seed 42) and left out, as the published code does with OpenCoder's."""
    contains: str = ""
    """Take only rows whose last message contains this text."""
    licence: str = ""
    """Licence of the data, copied into the manifest."""


@dataclass
class Validation:
    """Held-out chat rows: validation loss by t and the teacher's probe."""

    path: str
    """As a source's path."""
    rows: int = 256
    """Rows taken from the start of the file."""
    config: str = ""
    """As a source's config."""
    split: str = "validation"
    """Split of a hub or saved dataset."""
    format: Format = "auto"
    """As a source's format."""


@dataclass
class Data:
    """What is read, and how long a row may be."""

    sources: list[Source] = field(default_factory=list)
    """Chat data; several sources are mixed by weight."""
    validation: Validation | None = None
    """Held-out rows; none = no validation loss and no probe of the teachers."""
    aligned: str = ""
    """Folder of the aligned dataset; default runs/aligned/NAME."""
    student_length: int = 512
    """Longest student sequence, in tokens; longer rows are cut."""
    maskable: Maskable = "all"
    """Answers that may be masked and carry loss: `all` of a conversation, or (as published) the `last` one."""
    on_bad_row: OnBadRow = "fail"
    """A row that is no conversation ends the stage (`fail`), or is left out and counted by reason (`drop`)."""
    seed: int = 0
    """Seed of order, noise and random initial weights."""


@dataclass
class Student:
    """The model that is trained."""

    path: str
    """Folder or hub name: config, weights (safetensors) and tokenizer."""
    tokenizer: str = ""
    """Folder or hub name of the tokenizer; default: the path."""
    weights: Weights = "pretrained"
    """`random` takes the config only and initialises weights from `data.seed`."""
    block_size: int = 32
    """Block of block diffusion, in tokens."""
    blocks: Literal["sequence", "response"] = "sequence"
    """Where blocks are cut: `sequence` counts them from the start of the sequence, as published; `response` opens one at
    the start of every response, as the published sampler does."""
    input: Literal["block", "full"] = "block"
    """`block`: [xt, x0] under the block-diffusion mask (BD3LM). `full`: xt alone, bidirectional (LLaDA)."""
    eos_tail: bool = False
    """Fill the last block with end tokens and train on them, as the published code does."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest again: less memory for a third more
    of the student's time."""

    causal = stored = False  # as a teacher's

    @property
    def role(self) -> str:
        """In messages."""
        return "student"


@dataclass
class Teacher:
    """A frozen teacher."""

    name: str
    """Prefix of its columns in the aligned dataset and of its metrics."""
    path: str
    """Folder or hub name: config, weights (safetensors) and tokenizer."""
    tokenizer: str = ""
    """Folder or hub name of the tokenizer; default: the path."""
    weights: Weights = "pretrained"
    """`random` takes the config only: for trials of speed and memory, it teaches nothing."""
    length: int = 1024
    """Longest teacher sequence, in tokens."""
    input: Literal["full", "block", "causal"] = "full"
    """`full`: xt alone, bidirectional (as published for LLaDA2). `block`: [xt, x0] under the block-diffusion mask. `causal`:
    x0 from left to right, for an autoregressive model, which needs no mask token."""
    answers: Literal["live", "stored"] = "live"
    """`stored`: computed once by pipeline/precompute.py, as those of `input: causal` depend on no noise; training then
    holds no such teacher."""
    top_k: int = 64
    """Likeliest tokens that `answers: stored` keeps of each prediction, with a shared tokenizer; the others count as one."""
    block_size: int | None = None
    """Block of `input: block`, in tokens; default: what its config.json names, else the student's."""
    weight: float = 1.0
    """Weight of its distillation term beside the cross-entropy; 0 = as if it were not in the list."""
    expert_parallel_size: int | Literal["auto"] = "auto"
    """Ranks that share one set of experts; auto = the largest that divides the experts and the ranks of a node."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations of the teacher; losses are always float32."""

    @property
    def causal(self) -> bool:
        """Whether it is autoregressive: it reads x0 from left to right."""
        return self.input == "causal"

    @property
    def stored(self) -> bool:
        """Whether training takes its answers from files, and holds no such model."""
        return self.answers == "stored"

    @property
    def role(self) -> str:
        """In messages."""
        return f"teacher {self.name}"


@dataclass
class CompDemo:
    """Complementary demasking: two teacher views, each revealing what the other predicts."""

    enabled: bool | None = None
    """Default: as the strategy says (tide_shared: on, all others: off)."""
    ratio: float = 0.5
    """Probability that a masked unit belongs to the first half."""


@dataclass
class Tidal:
    """lambda(p, t) = lambda_train(p) (1 - t), the share of the teacher in TIDAL's target."""

    axes: Literal["both", "training", "timestep"] = "both"
    """Which axes move lambda."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of lambda_train over training progress."""
    init: float = 0.1
    """lambda_train at step 0."""
    maximum: float = 0.9
    """lambda_train at the last step."""
    midrange: bool = False
    """Weigh rows by exp(-(t - 0.5)^2 / (2 0.15^2))."""
    cross_entropy: bool = False
    """Scale the cross-entropy by lambda(p, t) too: its target is then the data's token mixed with the student's own
    distribution (detached), as TIDAL mixes the teacher's. Works beside every strategy."""


@dataclass
class Certainty:
    """Certainty forcing (dParallel, arXiv 2509.26488), for students that decide more tokens in a forward: the entropy of the
    masked tokens that the student has right, mean over masked tokens."""

    weight: float = 0.0
    """Beside the cross-entropy; 0 = without, 2 = as published."""
    temperature: float = 0.5
    """Of the distribution whose entropy is taken."""


@dataclass
class Objective:
    """The loss: cross-entropy plus one distillation term per teacher."""

    strategy: Strategy = "tide_cross"
    """TIDE-Cross: Reverse CALM across tokenizers, reverse KL with a shared one. TIDE-Shared: CALM-TIDAL (TIDAL with a
    shared tokenizer) + CompDemo. The other names set one objective by itself."""
    temperature: float = 2.0
    """T of every distillation term."""
    compdemo: CompDemo = field(default_factory=CompDemo)
    tidal: Tidal = field(default_factory=Tidal)
    certainty: Certainty = field(default_factory=Certainty)
    mask_unit: Literal["token", "chunk"] = "token"
    """`token`: draw tokens with probability t, then complete chunks (as published). `chunk`: draw chunks."""
    t_range: tuple[float, float] = (1e-3, 1.0)
    """Range of t, a row's masking probability: BD3-LM's clipped schedule. A model that was trained with t below 0.5 has
    hardly seen an answer that is mostly masked."""
    cross_entropy: Literal["schedule", "uniform"] = "schedule"
    """Weight of the cross-entropy: 1 / t, or 1."""
    cross_entropy_weight: float = 1.0
    """Weight of the whole cross-entropy term; 0 distils alone."""
    teacher_floor: float = 1e-7
    """Teacher chunk probabilities are kept this far from 0 and 1."""
    reduction: Literal["global", "micro_batch"] = "global"
    """Denominators: over the whole global batch, or (as published) local means of each micro-batch."""


@dataclass
class Optim:
    """AdamW with a cosine schedule."""

    lr: float = 5e-5
    """Peak learning rate."""
    steps: int | None = None
    """Optimizer steps; default: from epochs."""
    epochs: float | None = None
    """Passes over the training rows; give steps or epochs."""
    warmup: float = 0.1
    """Share of the steps with rising learning rate."""
    final: float = 0.0
    """Learning rate at the last step, as a share of the peak."""
    clip: float = 1.0
    """Gradient-norm clipping; 0 = none."""
    weight_decay: float = 0.0
    """AdamW's decay, of matrices alone: norms and biases have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    selection_bias_rate: float = 0.001
    """When a LLaDA2 MoE is the model that is trained: step of the router's load-balancing bias."""
    global_batch: int = 64
    """Rows per optimizer step, over all ranks."""
    micro_tokens: int = 4096
    """Tokens per rank and micro-batch: student [xt, x0] and every teacher view."""


@dataclass
class Checkpoint:
    """When to save, and what to keep."""

    every_steps: int = 100
    """Steps between checkpoints; the last step is always saved. 0 = only the last."""
    every_minutes: float = 30.0
    """Save also when this much time has passed."""
    keep: int = 3
    """Complete checkpoints kept."""
    formats: list[ExportFormat] = field(default_factory=list)
    """Formats of every checkpoint's model beside `export`, each in a folder export-FORMAT: docs/serving.md."""


@dataclass
class Evaluation:
    """What `evaluate` runs on a checkpoint."""

    tasks: list[str] = field(default_factory=list)
    """Task names of lm-evaluation-harness or of pipeline/evaluation/tasks."""
    preset: str = "paper"
    """Named decoding settings: see pipeline/evaluation/presets.py."""
    limit: int | None = None
    """First N problems of each task; default: all."""
    batch_size: int = 16
    """Prompts decoded together."""
    fewshot: int | None = None
    """Examples before each problem; default: as the preset or the task says."""
    chat: bool = True
    """Put problems into the model's chat template."""
    seed: int = 0
    """Seed of few-shot examples, of sampling and of the likelihood estimator."""
    likelihood_samples: int = 32
    """Draws of the log-likelihood estimator, a multiple of 4; its error shrinks with their square root or faster."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and activations; auto = bfloat16 on a GPU, float32 on a CPU."""


@dataclass
class Logging:
    """What is written while training."""

    every_steps: int = 10
    """Steps between lines of metrics.jsonl; metrics are reduced over ranks once per line."""
    validate_every: int = 200
    """Steps between validation losses; the last step is always validated. 0 = only the last."""


@dataclass
class Recipe:
    """Everything that a run needs to know, the engine's settings apart."""

    name: str
    """Names the run directory, runs/NAME."""
    student: Student
    data: Data = field(default_factory=Data)
    teachers: list[Teacher] = field(default_factory=list)
    """Frozen teachers; none = plain BD3LM training."""
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluation: Evaluation = field(default_factory=Evaluation)
    logging: Logging = field(default_factory=Logging)
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """In training. `flex`: FlexAttention, which skips what the mask hides, and is compiled at the first step (needs a C
    compiler). `auto`: flex on a GPU, sdpa elsewhere."""
    run_dir: str = ""
    """Run directory; default runs/NAME."""
    extends: str = ""
    """Recipe file (or shipped recipe) whose fields stand where this file names none; the resolved recipe has them all."""

    def __post_init__(self) -> None:
        self.run_dir = self.run_dir or f"runs/{self.name}"
        self.data.aligned = self.data.aligned or f"runs/aligned/{self.name}"
        self.student.tokenizer = self.student.tokenizer or self.student.path
        for teacher in self.teachers:
            teacher.tokenizer = teacher.tokenizer or teacher.path
        if self.objective.compdemo.enabled is None:
            self.objective.compdemo.enabled = self.objective.strategy == "tide_shared"


def without_idle_teachers(recipe: Recipe) -> Recipe:
    """The recipe without teachers of weight 0: they would cost a forward, and their chunks would complete masks."""
    return replace(recipe, teachers=[teacher for teacher in recipe.teachers if teacher.weight])


def compdemo_ratio(recipe: Recipe) -> float | None:
    """CompDemo's split; None where every teacher has one view."""
    return recipe.objective.compdemo.ratio if recipe.objective.compdemo.enabled else None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
