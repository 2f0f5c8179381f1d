"""The demo's tokenizer: a byte-level BPE of a few hundred tokens, trained on the texts of all levels' train splits."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from datamodules.demo.levels import LEVELS
from datamodules.demo.scenes import make_scene, sample_random
from datamodules.demo.text import caption, labels, turns, words_in
from fvl_lightning.core.prompts import RELEASED_PROMPTS

PAD, BOS, EOS, IMAGE = "<pad>", "<bos>", "<eos>", "<image>"
ROLES = ("<system>", "<user>", "<assistant>")
LOCATION_BINS = 32
VOCABULARY = 512
_SCENES_PER_LEVEL = 1000

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""A token per role in front of each message, and <eos> behind each answer."""


def save_tokenizer(folder: Path) -> None:
    """Trains the tokenizer and saves it where transformers' AutoTokenizer loads it; always the same files."""
    special = [PAD, BOS, EOS, IMAGE, *ROLES, *(f"<loc_{k}>" for k in range(LOCATION_BINS))]
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one, so that a number never seen is spelt of digits that were.
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
    tokenizer.train_from_iterator(_texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))


def _texts() -> Iterator[str]:
    """The encoder's prompts, and what is said about the first train scenes of every level, drawn with seed 0 always."""
    # As often as scenes, so that a prompt is a dozen tokens and not forty: every image pays for all of them.
    yield from list(RELEASED_PROMPTS.values()) * _SCENES_PER_LEVEL
    for level in LEVELS.values():
        for index in range(_SCENES_PER_LEVEL):
            rng = sample_random(0, level.name, "train", index)
            scene = make_scene(rng, level, "train")
            names = labels(scene)
            order = rng.sample(range(len(names)), len(names))
            yield caption(scene, level, order, rng.randrange(3))
            yield words_in(scene)
            yield from names
            for turn in turns(scene, level, rng):
                yield turn.question
                yield turn.answer
