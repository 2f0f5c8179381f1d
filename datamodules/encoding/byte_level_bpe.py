"""Small byte-level BPE tokenizers, trained on given texts in a second."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, IMAGE = "<pad>", "<bos>", "<eos>", "<image>"
ROLES = ("<system>", "<user>", "<assistant>")
LOCATION_BINS = 32
VOCABULARY = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""Writes one token per role before each message, and <eos> after each answer."""


def save_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """Trains a tokenizer of at most 512 tokens on `texts` and saves it for AutoTokenizer; same texts, same files.

    It has location tokens and CHAT_TEMPLATE, so that every component can use it.
    """
    special = [PAD, BOS, EOS, IMAGE, *ROLES, *(f"<loc_{k}>" for k in range(LOCATION_BINS))]
    tokenizer = Tokenizer(models.BPE())
    # Digits are tokens of their own, so that an unseen number consists of digits that training has seen.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))
