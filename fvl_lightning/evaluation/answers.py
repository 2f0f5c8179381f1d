"""Answers generated to questions about images, scored by kind, with two controls: the image zeroed, another image."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from fvl_lightning.core.errors import DataError
from fvl_lightning.modeling.build import Built

QUESTIONS_AT_ONCE = 128
ANSWER_TOKENS = 16
"""Most tokens an answer may have; the longest true answer of the demo has fewer."""

Images = Literal["real", "zeroed", "shuffled"]


@dataclass(frozen=True)
class Answer:
    """What the model said to a question (a `datamodules` Question)."""

    question: Any
    text: str

    @property
    def right(self) -> bool:
        """Exact match after folding case and white space."""
        return normalised(self.text) == normalised(self.question.answer)


class KindAccuracy(Metric):
    """Accuracy over all questions, per kind, and macro-averaged over kinds."""

    full_state_update = False

    def __init__(self, kinds: Iterable[str]) -> None:
        super().__init__()
        self.kinds = sorted(kinds)
        self.add_state("right", torch.zeros(len(self.kinds), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("asked", torch.zeros(len(self.kinds), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, kind: str, right: bool) -> None:
        """Counts one answer."""
        index = self.kinds.index(kind)
        self.right[index] += right
        self.asked[index] += 1

    def compute(self) -> dict[str, Any]:
        """{"macro", "overall", "by_kind": {kind: accuracy}}, over the kinds that were asked."""
        asked = {kind: int(n) for kind, n in zip(self.kinds, self.asked, strict=True) if n > 0}
        by_kind = {kind: int(self.right[self.kinds.index(kind)]) / n for kind, n in asked.items()}
        overall = int(self.right.sum()) / max(1, int(self.asked.sum()))
        return {"macro": sum(by_kind.values()) / max(1, len(by_kind)), "overall": overall, "by_kind": by_kind}


def normalised(text: str) -> str:
    """Lower case, white space folded, without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def accuracy(answers: Iterable[Answer]) -> dict[str, Any]:
    """{"macro", "overall", "by_kind"} of the answers."""
    answers = list(answers)
    metric = KindAccuracy({answer.question.kind for answer in answers})
    for answer in answers:
        metric.update(answer.question.kind, answer.right)
    return metric.compute()


def prior_answers(asked: Sequence[Any], seen: Sequence[Any]) -> list[Answer]:
    """What the most frequent answer of each kind among the questions `seen` in training says to those `asked`."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in seen:
        counts[question.kind][question.answer] += 1
    # Ties go to the answer first in the alphabet, so that the prior is a number and not a draw.
    prior = {kind: min(counter, key=lambda text: (-counter[text], text)) for kind, counter in counts.items()}
    return [Answer(question, prior.get(question.kind, "")) for question in asked]


@torch.no_grad()
def answer_questions(
    built: Built,
    data: Any,
    split: str,
    images: Images = "real",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """Greedy answers to every question of a split.

    Args:
        built: model and tokenizer.
        data: a connected data module with `questions`, `pixels` and `encoder`.
        images: the real ones, all pixels zero, or each question with the image of another sample.
        progress: called with questions done and questions in all.
    """
    questions = data.questions(split)
    if not questions:
        where = f"split {split} ({data.store(split).shards[0]} ...)"
        raise DataError(f"{where} has no questions to score: its records name no `kinds`")
    samples = sorted({question.index for question in questions})
    # Half a turn: everybody gets an image of somebody else, always the same one.
    other = dict(zip(samples, samples[len(samples) // 2 :] + samples[: len(samples) // 2], strict=True))
    answers: list[Answer] = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        batch = questions[start : start + QUESTIONS_AT_ONCE]
        shown = [other[question.index] if images == "shuffled" else question.index for question in batch]
        distinct = sorted(set(shown))
        pixels = data.pixels(split, distinct).to(built.model.device)
        if pixels.shape[0] != len(distinct):
            where = f"split {split} ({data.store(split).shards[0]} ...)"
            raise DataError(f"{where}: only samples with exactly one image each can be scored")
        if images == "zeroed":
            pixels = torch.zeros_like(pixels)
        rows = torch.tensor([distinct.index(index) for index in shown], device=pixels.device)
        sources = {name: source[rows] for name, source in built.model.encoder(pixels).items()}
        prompts = [data.encoder.prompt(question.prompt_messages) for question in batch]
        texts = generate_texts(built, prompts, image_sources=sources)
        answers += [Answer(question, text) for question, text in zip(batch, texts, strict=True)]
        progress(len(answers), len(questions))
    return answers


def generate_texts(
    built: Built, prompts: Sequence[Sequence[int]], max_tokens: int = ANSWER_TOKENS, **inputs: Any
) -> list[str]:
    """Texts generated after `prompts` (token ids, image placeholders expanded); padded on the left to one length.

    An answer ends where the model's generation_config says: at the token that training ends answers with, or at eos.
    `inputs` go to transformers' generate: the images, and how to sample (greedy unless do_sample=True is among them).
    """
    input_ids, mask = left_padded(prompts, built.tokenizer.pad_token_id, built.model.device)
    written = built.model.generate(
        input_ids,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        **{"do_sample": False} | inputs,
    )
    return built.tokenizer.batch_decode(written[:, input_ids.shape[1] :], skip_special_tokens=True)


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, S] padded on the left, and the mask [B, S] with 0 at pads."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
