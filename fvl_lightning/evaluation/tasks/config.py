"""Schema of a task file: where the rows of a benchmark lie, how a model is asked, and how its answers are judged."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fvl_lightning.core.config.field_types import PathsText, PathText
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.config.loading import BY_NAME

MAX_ANSWER_TOKENS = 4096


@dataclass
class TaskData:
    """The files with the rows of a task."""

    files: PathsText = field(default_factory=list)
    """Parquet files, JSON Lines files or shards, as paths or globs relative to the task's file; or one dataset of the
    hub, such as hub:lmms-lab/textvqa:default/validation."""
    images: PathText = ""
    """Folder of the images that rows name by file; or Parquet files (also of the hub) with the columns id and image,
    which rows name by id. Empty where rows hold their images."""
    where: dict[str, Any] = field(default_factory=dict)
    """{field: value or list of allowed values}: only rows with these values are asked; empty for all rows."""


@dataclass
class TaskFields:
    """Names of the fields of a row. A field within a field is written with a dot, such as answers.text."""

    id: str = ""
    """Field with the question's id in files of samples; empty for the number of the row."""
    question: str = "question"
    """Field with the text of the question; empty where the prompt has none."""
    images: list[str] = field(default_factory=lambda: ["image"])
    """Fields with images, in order; each may have several, or none. Empty for questions without images."""
    answers: list[str] = field(default_factory=lambda: ["answer"])
    """Fields with reference answers; each may have several."""
    answers_as: Literal["text", "letter", "number", "option"] = "text"
    """Form of the references of a question with options. text: compared as it is. The other forms are converted to the
    letter of the right option: letter, such as b or (B); number, its index from 0 on; option, its text."""
    answer_names: dict[str, str] = field(default_factory=dict)
    """{reference in the rows: text that is judged in its place}, such as {"1": "yes"}; others stay as they are."""
    choices: list[str] = field(default_factory=list)
    """Fields with the options of a multiple-choice question: one field with a list, or with a text such as
    "['red', 'blue']" or "(a) red (b) blue"; or a field for each option, of which empty ones are left out."""
    kind: str = ""
    """Field that groups questions in reports; a macro average has the same weight for each of its values. Empty for
    one kind, and for the `kinds` of shards that have them."""
    group: str = ""
    """Field of the questions that are judged together; empty for those about the same images."""
    cluster: str = ""
    """Field of the questions that are drawn together when intervals are computed; empty for those about the same
    images."""
    slices: list[str] = field(default_factory=list)
    """Fields by which scores are reported, too."""


@dataclass
class TaskAnswer:
    """Form of the answers of a task."""

    by: Literal["generation", "likelihood"] = "generation"
    """generation: the model writes a text; likelihood: the most likely of the choices is taken, per token."""
    tokens: int = number(16, at_least=1, at_most=MAX_ANSWER_TOKENS)
    """Length limit of a generated answer."""
    stop: list[str] = field(default_factory=list)
    """Texts at which a generated answer is cut, in addition to the model's own end."""
    clean: list[Literal["strip", "first_line", "first_word", "lower", "letter", "after_answer", "number"]] = field(
        default_factory=lambda: ["strip"]
    )
    """Steps from the generated text to the answer that is judged, in order."""


@dataclass
class TaskConfig:
    """A benchmark."""

    title: str
    """Name in tables and figures."""
    data: TaskData
    metric: dict[str, Any] = field(default_factory=lambda: {"name": "accuracy"}, metadata=BY_NAME)
    """The metric's registered name, or a mapping with `name` and options of it."""
    validation: TaskData = field(default_factory=TaskData)
    """Rows that `trainer.evaluate` asks during a training, in place of those of `data`; no files for none."""
    plugins: list[str] = field(default_factory=list)
    """Files or modules with metrics of your own, relative to the task's file."""
    primary: str = ""
    """The number of the metric that stands for the task, such as macro or f1; empty for the metric's own."""
    fields: TaskFields = field(default_factory=TaskFields)
    prompt: str = "{question}"
    """Text of the user's message after the images. {field} is replaced by a field of the row, {choices} by the options
    with their letters, one a line, and {letters} by "A, B, C". {field|strip|capitalize} changes the text, by the
    functions strip, lower, capitalize and remove:some text. {?field:text} is a text for rows where the field is filled,
    {!field:text} for the others, and {?field=value:text} for those with this value. {{ and }} are braces. <image>
    places the next image there instead."""
    paraphrases: list[str] = field(default_factory=list)
    """Other prompts of the same meaning, for the control that asks with them."""
    system: str = ""
    """Text of the system message; empty for none."""
    answer: TaskAnswer = field(default_factory=TaskAnswer)
    source: str = ""
    """Address of the benchmark's description."""
    published: dict[str, float] = field(default_factory=dict)
    """{model: score of the primary number as published}, on the scale that `scale` multiplies to."""
    note: str = ""
    """Difference between the published scores and these, a phrase for tables."""
    scale: float = number(100.0, above=0)
    """Published scores are the metric's numbers times this."""
    lmms_eval: str = ""
    """Name of the same task in lmms-eval; empty where it has none."""
    name: str = ""
    """Name in results; empty for that of the file."""
