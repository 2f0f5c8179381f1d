"""Types of plan.json: what a comparison would train, score and take, before it is started."""

from dataclasses import dataclass, field

from fvl_lightning.comparison.result_files.record import IF_FILLED, Record


@dataclass(kw_only=True)
class PlannedStage(Record):
    """One training of an arm, or of the encoder that the arms share."""

    arm: str
    stage: str
    parameters: int
    trained: int
    """Parameters that the stage trains."""
    image_tokens: int = field(default=0, metadata=IF_FILLED)
    """Tokens of an image in the language model; 0 for a stage without one."""
    steps: int
    """Optimiser steps."""
    samples: int
    """Samples, or packed rows, of all steps."""
    rows: str
    """Where the length of the rows comes from."""
    row_tokens: int
    """Tokens of a row with its padding, on average."""
    row_images: float
    """Images of a row, on average."""
    sample_flops: int
    """Operations of the forward and backward pass of a sample, two per multiply-add."""
    flops: float
    """Operations of the whole training: recomputed activations and passes over the validation split included."""
    memory_bytes: int | None
    """Peak of a device for rows as long as the longest; None where a component reads values, which shapes lack."""
    disk_bytes: int
    """Checkpoints and model that a finished run leaves."""
    devices: int
    """Devices that train it together."""
    hours: float | None
    """Hours of one training; None where neither a measurement nor the speed of a device is known."""
    hours_from: str
    """How the hours are known: measured, or computed, and of what."""


@dataclass(kw_only=True)
class PlannedScoring(Record):
    """The scoring of a trained arm on the test splits."""

    arm: str
    question_flops: int
    """Operations of an image and a question, up to the first token of the answer."""
    questions: int | None
    """Questions of all splits and levels, those of the controls included; None without the data."""
    flops: float | None
    hours: float | None


@dataclass(kw_only=True)
class PlannedRuns(Record):
    """Cells, trials of learning rates, or encoders: how many there are, and how many are finished."""

    total: int
    finished: int


@dataclass(kw_only=True)
class PlannedCache(Record):
    """The features of the frozen encoder, which all arms of a seed share."""

    encoders: int
    """Encoders whose features are computed, one per seed, or one where it is pretrained."""
    images: int | None
    """Images of the training splits; None without the data."""
    image_flops: int
    """Operations of the encoder for an image."""
    bytes: int | None
    flops: float | None


@dataclass(kw_only=True)
class PlanTotals(Record):
    """Sums over all cells, trials and encoders, and over those that are not finished."""

    flops: float
    flops_left: float
    device_hours: float | None
    """Hours of devices; None where the hours of a part are not known."""
    device_hours_left: float | None
    hours_left: float | None
    """Hours until the end, with `jobs` cells at a time."""
    disk_left: int
    """Bytes that the disk needs for what is not finished."""
    disk_free: int


@dataclass(kw_only=True)
class ComparisonPlan(Record):
    """plan.json."""

    comparison: str
    time: str
    """When it was made, UTC."""
    arms: list[str]
    seeds: list[int]
    jobs: int
    """Cells at a time."""
    device: str
    """The device of the hours and of the memory."""
    device_memory: int | None
    cells: PlannedRuns
    trials: PlannedRuns
    encoders: PlannedRuns
    stages: list[PlannedStage]
    scoring: list[PlannedScoring]
    feature_cache: PlannedCache | None
    totals: PlanTotals
    notes: list[str] = field(default_factory=list)
    """Assumptions, and what could not be known here."""
    tasks: dict[str, int] = field(default_factory=dict, metadata=IF_FILLED)
    """{task: questions that are asked}; questions of `scoring` count them."""
