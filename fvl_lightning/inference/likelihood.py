"""Log-likelihoods of given continuations: how probable a text is after a prompt with images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import Message
from fvl_lightning.core.errors import DataError
from fvl_lightning.inference.generation import positions
from fvl_lightning.modeling.build import BuiltModel

MAX_LOGITS = 2**25
"""The most logits held at a time, 128 MiB in float32."""


@dataclass(frozen=True)
class Continuation:
    """The likelihood of a text after a prompt."""

    log_likelihood: float
    """Sum of the natural logarithms of its tokens' probabilities; 0 for a text without tokens."""
    tokens: int
    """Number of its tokens."""
    is_greedy: bool
    """Whether greedy decoding writes these tokens after the prompt."""

    @property
    def per_token(self) -> float:
        """Returns the log-likelihood per token; of a text without tokens, 0."""
        return self.log_likelihood / max(self.tokens, 1)


def answer_ids(
    encoder: ConversationEncoder, messages: Sequence[Message], prompt: Sequence[int], text: str
) -> list[int]:
    """Returns the token ids of an answer behind its prompt, with its end, as training shows them.

    Args:
        encoder: that of the model's processor.
        messages: the messages that the prompt was made of.
        prompt: their token ids, as `encoder.prompt` returns them.
        text: the answer.
    """
    encoded = encoder.encode_turns([*messages, {"role": "assistant", "content": text}])
    return list(encoded.ids[len(prompt) : encoded.turn_ends[-1]])


@torch.no_grad()
def continuation_log_likelihoods(
    built: BuiltModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    **inputs: Any,
) -> list[Continuation]:
    """Returns the log-likelihood of each continuation after its prompt, all of them in one pass of the model.

    Logits are computed at the places of the continuations alone, and their softmax in float32. A result depends on the
    other rows by rounding only.

    Args:
        built: the model and its tokenizer.
        prompts: token ids with image placeholders expanded, at least one id each; several continuations of one prompt
            repeat it.
        continuations: token ids, as many as prompts.
        inputs: the images in the order of the placeholders in all rows, `pixel_values` [I, 3, P, P] or `image_sources`.
            Where rows share images, run the encoder once for each and index its outputs by row.

    Raises:
        DataError: a prompt with its continuation is longer than the model's positions.
        ValueError: a prompt is empty, numbers differ, or placeholders and images do not match.
    """
    if not continuations:
        return []
    rows = [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]
    if not all(map(len, prompts)):
        raise ValueError("a prompt has no tokens, so that nothing predicts its continuation")
    longest = max(map(len, rows))
    if longest > (limit := positions(built)):
        raise DataError(f"a prompt with its continuation has {longest} tokens, the model has {limit} positions")
    model, padding = built.model, built.tokenizer.pad_token_id
    # Padding at the end needs no mask: no token sees a later one.
    token_ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], device=model.device)
    output, _ = model.run(token_ids, use_cache=False, **inputs)
    # The hidden state of each place predicts the token after it.
    hidden = output.last_hidden_state
    at = [(row, place) for row, prompt in enumerate(prompts) for place in range(len(prompt) - 1, len(rows[row]) - 1)]
    targets = torch.tensor([rows[row][place + 1] for row, place in at], device=hidden.device, dtype=torch.long)
    places = torch.tensor(at, device=hidden.device, dtype=torch.long).view(-1, 2)
    losses, greedy = _token_scores(built, hidden[places[:, 0], places[:, 1]], targets)
    lengths = [len(continuation) for continuation in continuations]
    return [
        Continuation(0.0 - float(loss.sum()), len(loss), bool(chosen.all()))
        for loss, chosen in zip(losses.split(lengths), greedy.split(lengths), strict=True)
    ]


def _token_scores(built: BuiltModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, on the CPU, the cross entropy of each target in float64, and whether it is the most probable token.

    Args:
        built: the model.
        hidden: hidden states [R, D].
        targets: token ids [R].
    """
    size = max(1, MAX_LOGITS // built.model.config.get_text_config().vocab_size)
    parts = list(_chunks(built, hidden.split(size), targets.split(size)))
    return torch.cat([losses for losses, _ in parts]), torch.cat([greedy for _, greedy in parts])


def _chunks(
    built: BuiltModel, hidden: Sequence[Tensor], targets: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    for states, wanted in zip(hidden, targets, strict=True):
        scores = built.model.language_model.logits(states)
        with torch.autocast(scores.device.type, enabled=False):
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            wanted = wanted.to(scores.device)  # a head may lie on another device
            losses = torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
        yield losses.double().cpu(), (scores.argmax(-1) == wanted).cpu()
