"""Stop tokens of generation: one rule for runs, imports, exports, adapters and loaded folders."""

import copy
from collections.abc import Collection
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from datamodules.encoding.conversation import ConversationEncoder
from fvl_lightning.core.errors import UserError
from fvl_lightning.language_models.causal import as_ids


def set_stop_tokens(model: PreTrainedModel, tokenizer: Any, listed: Collection[int] = ()) -> None:
    """Gives the model a generation config with token ids only: the stop tokens, the padding and the first token.

    Sampling, temperature, penalties and lengths are left out: those of a pretrained language model would silently
    change greedy answers.

    Args:
        model: the model, whose configurations may list stop tokens.
        tokenizer: its tokenizer.
        listed: more stop tokens.
    """
    listed = [*listed, *as_ids(model.generation_config.eos_token_id)]
    listed += as_ids(model.config.get_text_config().eos_token_id)
    model.generation_config = GenerationConfig(
        eos_token_id=stop_tokens(tokenizer, model.config.image_token_id, listed) or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def add_stop_tokens(model: PreTrainedModel, listed: Collection[int]) -> None:
    """Adds stop tokens, such as those of an adapter, to the model's."""
    known = as_ids(model.generation_config.eos_token_id)
    if set(listed) - set(known):
        config = copy.deepcopy(model.generation_config)
        config.eos_token_id = list(dict.fromkeys([*known, *listed]))
        model.generation_config = config


def stop_tokens(tokenizer: Any, image_token_id: int, listed: Collection[int] = ()) -> list[int]:
    """Returns the ids that end an answer: the tokenizer's eos, the end token of training, and those `listed`.

    In training, captions end with eos, and answers with the token that the chat template writes after them, which may
    differ (Phi-3.5). `listed` comes from the language model's own files. Only special tokens of the tokenizer count,
    since other ids may be words of another tokenizer.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [tokenizer.eos_token_id, end_of_answer(tokenizer, image_token_id), *(i for i in listed if i in special)]
    return list(dict.fromkeys(i for i in found if i is not None and i != image_token_id))


def end_of_answer(tokenizer: Any, image_token_id: int) -> int | None:
    """Returns the token that ends an answer in training; None if the chat template does not support training."""
    try:
        return ConversationEncoder(tokenizer, image_token_id, tokens_per_image=1).end_token_id
    except UserError:  # raised again, with more context, when conversations are needed
        return None
