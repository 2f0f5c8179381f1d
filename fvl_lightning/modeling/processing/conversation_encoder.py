"""Opens the encoder of conversations for a tokenizer that a command names."""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoTokenizer

from datamodules.encoding.conversation import ConversationEncoder
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.pretrained import open_saved
from fvl_lightning.modeling.processing.processor import IMAGE_TOKEN, image_tokenizer


def open_conversation_encoder(tokenizer: str, tokens_per_image: int) -> ConversationEncoder:
    """Returns the encoder of texts to tokens that training uses.

    Args:
        tokenizer: the folder or hub id of a tokenizer with a chat template.
        tokens_per_image: placeholders per image.

    Raises:
        ConfigError: the tokenizer cannot be read or used.
    """
    if not Path(tokenizer).is_dir():
        try:
            validate_repo_id(tokenizer)
        except HFValidationError:  # whose own words speak of the hub alone
            raise ConfigError(f"--tokenizer: there is no folder {tokenizer}, and it is no hub id") from None
    opened = image_tokenizer(open_saved(AutoTokenizer, tokenizer, "--tokenizer"))
    return ConversationEncoder(opened, opened.convert_tokens_to_ids(IMAGE_TOKEN), tokens_per_image)
