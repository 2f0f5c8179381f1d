"""Checks that exactly the answers of a row are supervised, and that the chat template suits training."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from datamodules.base import BatchData
from datamodules.batching.config import BatchConfig
from datamodules.detect_question_form import detect_question_form
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.items import Piece
from datamodules.encoding.messages import Message, parts_of, with_sizes
from datamodules.encoding.views import TextView, View, messages_of
from datamodules.storage.sample import SampleError, spread
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.chat_date import writes_the_day
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import plural, visible
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.doctor.finding import Finding

MAX_ROWS = 64
"""Samples to inspect, over all datasets."""
SHARDS_PER_DATASET = 4
"""Shards of each dataset that the samples are taken from."""
EXAMPLE_CONVERSATION: list[Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A red square."},
    {"role": "user", "content": "And its colour?"},
    {"role": "assistant", "content": "Red."},
]


@dataclass
class RowStatistics:
    """Statistics of the inspected rows."""

    tokens: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    """Images of each row, or their tiles."""
    image_tokens: list[int] = field(default_factory=list)
    """Tokens of each image that becomes tiles, with the marks between them."""
    supervised: list[int] = field(default_factory=list)
    """Supervised tokens of each row."""
    over_long: int = 0
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """One sentence per row whose supervised tokens are not its answers, or whose number of image tokens is wrong."""

    @property
    def mean_tokens(self) -> int | None:
        """Mean number of tokens in a row; None where none was read."""
        return round(sum(self.tokens) / len(self.tokens)) if self.tokens else None

    @property
    def longest(self) -> int | None:
        """Number of tokens in the longest row; None where none was read."""
        return max(self.tokens, default=None)

    def images_per_row(self, config: BatchConfig) -> int | None:
        """Returns the most images or tiles seen in a row; for packed rows, the expected number in a full row.

        None where no row was read.
        """
        if not self.tokens:
            return None
        if config.layout == "packed":
            return math.ceil(config.sequence_length * sum(self.images) / sum(self.tokens))
        return max(self.images)


def inspect_rows(data: BatchData, stats: RowStatistics) -> None:
    """Encodes some rows of the split train as training does, and adds them to `stats`."""
    datasets = data.datasets("train")
    for dataset in datasets:
        shards = [dataset.shards[number] for number in spread(len(dataset.shards), SHARDS_PER_DATASET)]
        store, view = SampleStore(shards, "train", data.cache), data.view(dataset.view)
        for i in spread(len(store), max(1, MAX_ROWS // len(datasets))):
            try:
                if isinstance(view, TextView):
                    _inspect_text(store, i, dataset.view, view, stats)
                else:
                    _inspect_targets(store, i, view, stats)
            except SampleError as error:
                stats.broken.append(str(error))


def inspect_example(encoder: ConversationEncoder, view: str, stats: RowStatistics) -> None:
    """Encodes an example row and adds it to `stats`, for when there are no shards yet; its image has the most tiles."""
    tiles, sizes, messages = 1, None, EXAMPLE_CONVERSATION
    if encoder.tiling is not None:
        tiles, size = max((encoder.tiling.grid(size).tiles, size) for size in encoder.tiling.longest)
        sizes = [size]
        messages = with_sizes(messages, sizes)
    if view == "caption":
        ids, labels = encoder.caption("A red square.", sizes=sizes)
        _compare("example", encoder, ids, labels, ["A red square."], tiles, stats)
    else:
        ids, labels = encoder.encode(messages)
        _compare("example", encoder, ids, labels, assistant_texts(messages), tiles, stats)


def check_supervision(experiment: ExperimentConfig, stats: RowStatistics, real: bool) -> Iterator[Finding]:
    """Reports wrong masks, rows that are too long and samples that cannot be used.

    Args:
        real: whether the rows come from shards rather than from the example.
    """
    config, count = experiment.data.config, len(stats.tokens) + len(stats.wrong)
    if stats.wrong:
        advice = "the chat template cannot be used as it is: give another in language_model.chat_template"
        yield Finding("supervision", "failed", f"{len(stats.wrong)} of {count} rows: {stats.wrong[0]}", advice)
    elif stats.tokens:
        rows = f"{plural(count, 'row')} of the shards" if real else "an example row, since no shards can be read"
        message = "exactly the answers are supervised, image tokens match"
        yield Finding("supervision", "ok", f"{rows}: {message}, {stats.mean_tokens} tokens on average")
    if sizes := stats.image_tokens:
        mean = sum(sizes) / len(sizes)
        counted = f"{min(sizes):,} to {max(sizes):,} tokens each, {mean:,.0f} on average"
        yield Finding("image tokens", "ok", f"{plural(len(sizes), 'image')} cut into tiles: {counted}")
    if stats.over_long:
        message = f"{stats.over_long} of {count} rows have more than {config.sequence_length} tokens: over_long is "
        advice = "raise data.sequence_length, or see docs/data.md for data.over_long"
        yield Finding("row length", "warning", message + config.over_long, advice)
    if stats.broken:
        share = len(stats.broken) / (count + len(stats.broken))
        message = f"{plural(len(stats.broken), 'row')} cannot be used, such as {stats.broken[0]}"
        advice = "`fvl shards check` names all; training skips up to data.max_bad_fraction of them"
        yield Finding("rows", "failed" if share > config.max_bad_fraction else "warning", message, advice)


def has_conversations(data: BatchData, experiment: ExperimentConfig, readable: bool) -> bool:
    """Returns whether any dataset is trained on as conversations."""
    views = {dataset.view for dataset in data.datasets("train")} if readable else {experiment.data.config.view}
    return "conversation" in views


def check_question_form(data: BatchData) -> Iterator[Finding]:
    """Reports what stands around the questions in the data, and where datasets differ in it."""
    form, differences = detect_question_form(data)
    joins = f"{form.behind_image!r} stands between an image and the text after it" if form.behind_image else ""
    system = "all conversations have the same system message" if form.system else ""
    if message := " and ".join(filter(None, (joins, system))):
        yield Finding("asking", "ok", f"{message}: the saved processor writes prompts the same way")
    for sentence in differences:
        advice = "make the datasets alike, or write the difference into your prompts when you use the model"
        yield Finding("asking", "warning", sentence, advice)


def check_chat_template(encoder: ConversationEncoder, day: str | None) -> Iterator[Finding]:
    """Reports surprises of the chat template: a date, another generation prompt than training's, refused turns.

    Args:
        day: `language_model.chat_date`, where the language model has one.
    """
    if day and writes_the_day(encoder.template.text):
        message = f"it writes a date: always {day}, in training and whenever the model is used"
        yield Finding("chat template", "ok", f"{message} (language_model.chat_date)")
    if prompts := encoder.template.other_generation_prompt():
        template_prompt, training_prompt = (visible(prompt)[:60] or "nothing" for prompt in prompts)
        message = (
            f"its generation prompt is {template_prompt!r}, but in training an answer follows {training_prompt!r}"
        )
        advice = (
            "every command and the saved processor use training's prompt; for other programs, set "
            "language_model.chat_template to one whose generation prompt is what stands before its answers"
        )
        yield Finding("chat template", "warning", message, advice)
    try:
        encoder.encode(EXAMPLE_CONVERSATION)
    except DataError as error:
        advice = "docs/data.md, under \"What a row is\", shows how Qwen3's template is changed"
        yield Finding("chat template", "warning", f"conversations of several turns are refused: {error}", advice)


def assistant_texts(messages: list[Message]) -> list[str]:
    """Returns the text of every assistant message."""
    return [
        "".join(part["text"] for part in parts_of(message)) for message in messages if message["role"] == "assistant"
    ]


def _inspect_text(store: SampleStore, i: int, name: str, view: TextView, stats: RowStatistics) -> None:
    encoder, images = view.encoder, store.image_count(i)
    try:
        sizes = None if encoder.tiling is None else store.image_sizes(i)
        if name == "caption":
            expected = [store.record(i)["caption"]]
            ids, labels = encoder.caption(expected[0], images, sizes)
        else:
            messages = list(messages_of(store, i))
            expected = assistant_texts(messages)
            ids, labels = encoder.encode(messages if sizes is None else with_sizes(messages, sizes))
        if encoder.tiling is not None and sizes is not None:
            images = sum(encoder.tiling.grid(size).tiles for size in sizes)
            stats.image_tokens += [len(encoder.image_ids([size])) for size in sizes]
    except DataError as error:
        raise error if isinstance(error, SampleError) else store.error(i, "not encodable", str(error)) from None
    except KeyError:
        raise store.error(i, "no caption") from None
    _compare(store.key(i), encoder, ids, labels, expected, images, stats)
    stats.over_long += len(ids) > view.sequence_length


def _inspect_targets(store: SampleStore, i: int, view: View, stats: RowStatistics) -> None:
    encoded = view.encode(store, Piece(i))
    stats.tokens.append(max(len(ids) for ids, _ in encoded.rows))
    stats.images.append(encoded.images)
    stats.supervised.append(stats.tokens[-1])
    stats.over_long += encoded.truncated


def _compare(
    key: str,
    encoder: ConversationEncoder,
    ids: list[int],
    labels: list[int],
    expected: list[str],
    images: int,
    stats: RowStatistics,
) -> None:
    """Compares the decoded supervised tokens with the expected answers, and counts image tokens."""
    groups = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORE_INDEX)
    runs = [[token for token, _ in group] for is_supervised, group in groups if is_supervised]
    decode = encoder.tokenizer.decode
    texts = [decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() for run in runs]
    answers = [answer.strip() for answer in expected]
    placeholders, needed = ids.count(encoder.image_token_id), images * encoder.tokens_per_image
    if texts != answers:
        found, missed = next(
            ((text, answer) for text, answer in zip(texts, answers, strict=False) if text != answer),
            (f"{len(texts)} runs of tokens", f"{len(answers)} answers"),
        )
        stats.wrong.append(f"'{key}' has {visible(found)[:60]!r} supervised in place of {visible(missed)[:60]!r}")
    elif any(run[-1] not in encoder.tokenizer.all_special_ids for run in runs):
        stats.wrong.append(f"'{key}' has an answer that ends without an end token")
    elif placeholders != needed:
        stats.wrong.append(f"'{key}' has {placeholders} image tokens in place of {needed}")
    else:
        stats.tokens.append(len(ids))
        stats.images.append(images)
        stats.supervised.append(sum(map(len, runs)))
