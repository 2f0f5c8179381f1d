"""The tokens at which generation ends: one rule for runs, imports, exports, adapters and loaded folders."""

import copy
from collections.abc import Collection
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from datamodules.encoding.conversation import ConversationEncoder
from fvl_lightning.core.errors import UserError
from fvl_lightning.language_models.causal import as_ids


def set_stop_tokens(model: PreTrainedModel, tokenizer: Any, listed: Collection[int] = ()) -> None:
    """Gives the model a generation config of token ids alone: `stop_tokens`, pad and first token.

    What else a generation config can hold (sampling, temperature, penalties, lengths) is left out: a pretrained
    language model's choices would turn greedy answers into others without a word.

    Args:
        listed: end tokens beside those of the model's configurations.
    """
    listed = [*listed, *as_ids(model.generation_config.eos_token_id)]
    listed += as_ids(model.config.get_text_config().eos_token_id)
    model.generation_config = GenerationConfig(
        eos_token_id=stop_tokens(tokenizer, model.config.image_token_id, listed) or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def add_stop_tokens(model: PreTrainedModel, listed: Collection[int]) -> None:
    """Adds end tokens, such as an adapter's, to those of the model."""
    known = as_ids(model.generation_config.eos_token_id)
    if set(listed) - set(known):
        config = copy.deepcopy(model.generation_config)
        config.eos_token_id = list(dict.fromkeys([*known, *listed]))
        model.generation_config = config


def stop_tokens(tokenizer: Any, image_token_id: int, listed: Collection[int] = ()) -> list[int]:
    """Ids that end an answer: the tokenizer's eos, what training ends an answer with, and those `listed`.

    Captions are trained to end with eos, answers with what the chat template writes behind them (Phi-3.5's is another
    token). `listed` is what the language model's own files name; of these only special tokens of the tokenizer count,
    since with another tokenizer the same ids are words.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [tokenizer.eos_token_id, end_of_answer(tokenizer, image_token_id), *(i for i in listed if i in special)]
    return list(dict.fromkeys(i for i in found if i is not None and i != image_token_id))


def end_of_answer(tokenizer: Any, image_token_id: int) -> int | None:
    """The token that training ends an answer with; None where the chat template cannot be trained with."""
    try:
        return ConversationEncoder(tokenizer, image_token_id, tokens_per_image=1).end_token_id
    except UserError:  # it is raised again, with its place, where conversations are needed
        return None
