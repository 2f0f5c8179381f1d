"""Chat templates as they are published, each over a small tokenizer that is built like its family's."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_3_5 = (
    "{% for message in messages %}{% if message['role'] != 'system' or message['content'] %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = 'A chat between a curious user and an assistant.' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token + first }}{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ ' USER: ' + message['content'] }}{% else %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set first = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% set content = (first if loop.index0 == 0 else '') + message['content'] %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + (first if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_0_1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_3 = (
    "{% set last = namespace(user=0) %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' and loop.index0 > last.user %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes an empty thought in front of the last answer only, and none in its invitation."""
R_1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|User|>' + message['content'] }}{% elif message['role'] == 'system' %}{{ message['content'] }}{% else %}"
    "{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
"""Opens a thought in its invitation, and drops thoughts of answers."""
DATED = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}" + QWEN
SILENT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
)
"""Has no invitation."""
EAGER = SILENT + "{{ '<|im_start|>assistant\n' }}"
"""Always invites, behind the last answer too."""

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen cut a text before the merges: a blank goes with the word behind it, line breaks together."""

WORDS = ["what colour is the circle? the red one, there are two USER: q ASSISTANT: a [INST] q [/INST] a\n\n"] * 3
LLAMA_TOKENS = ("<unk>", "<s>", "</s>")
PHI_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


@dataclass(frozen=True)
class Family:
    """A template with its tokenizer, and what is to be expected of them.

    Attributes:
        engine: how it cuts: `bytes` (byte-level), `legacy` (a blank in front of every text between special tokens)
            or `first` (a blank in front of the whole text only).
        special: its special tokens.
        bos, eos: the tokens of that name.
        end: what the template writes behind the words of an answer, up to the end token.
        lead: blanks in front of an answer that its first token holds; `inserted` if the tokenizer puts them there.
        trims: whether contents lose their blanks at the ends.
        system: whether it takes a message of the system.
        after: what stands behind the last end token.
        rstrip: the special tokens that take the blanks behind them.
    """

    template: str
    engine: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    end: str
    lead: str = ""
    inserted: bool = False
    trims: bool = False
    system: bool = True
    after: str = ""
    rstrip: tuple[str, ...] = ()

    def spoken(self, answer: str) -> str:
        """What the supervised tokens of an answer say."""
        words = answer.strip() if self.trims else answer
        return ("" if self.inserted and not words else self.lead) + words + self.end


CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_TOKENS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
R_1_TOKENS = ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "llama_3": Family(LLAMA_3, "bytes", HEADERS, HEADERS[0], "<|eot_id|>", "<|eot_id|>", trims=True),
    "qwen": Family(
        QWEN, "bytes", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", "<|im_end|>", after="\n"
    ),
    "llama_2": Family(LLAMA_2, "legacy", LLAMA_TOKENS, "<s>", "</s>", " </s>", lead=" ", trims=True),
    "vicuna": Family(VICUNA, "legacy", LLAMA_TOKENS, "<s>", "</s>", "</s>", lead=" "),
    "vicuna_first": Family(VICUNA, "first", LLAMA_TOKENS, "<s>", "</s>", "</s>", lead=" "),
    "mistral": Family(MISTRAL, "first", LLAMA_TOKENS, "<s>", "</s>", "</s>", lead=" "),
    "mistral_0_1": Family(MISTRAL_0_1, "first", LLAMA_TOKENS, "<s>", "</s>", "</s>", system=False, after=" "),
    **{
        name: Family(
            template,
            "legacy",
            (*LLAMA_TOKENS, *PHI_TOKENS),
            "<s>",
            "<|endoftext|>",
            "<|end|>",
            lead=" ",
            inserted=True,
            after="<|endoftext|>",
            rstrip=PHI_TOKENS[1:],
        )
        for name, template in (("phi_3", PHI_3), ("phi_3_5", PHI_3_5))
    },
}
NAMES = sorted(FAMILIES)
ODD_FAMILIES = {
    "gemma": Family(
        GEMMA, "bytes", GEMMA_TOKENS, "<bos>", "<eos>", "<end_of_turn>", trims=True, system=False, after="\n"
    ),
    "qwen_3": Family(QWEN_3, "bytes", CHATML_TOKENS, None, "<|im_end|>", "<|im_end|>", after="\n"),
    "r_1": Family(R_1, "bytes", R_1_TOKENS, "<|begin|>", "<|end|>", "<|end|>"),
    "dated": Family(DATED, "bytes", CHATML_TOKENS, None, "<|im_end|>", "<|im_end|>", after="\n"),
    "silent": Family(SILENT, "bytes", CHATML_TOKENS, None, "<|im_end|>", "<|im_end|>", after="\n"),
    "eager": Family(EAGER, "bytes", CHATML_TOKENS, None, "<|im_end|>", "<|im_end|>", after="\n<|im_start|>assistant\n"),
}
"""Templates that write a date, or whose invitation is not what stands in front of their answers; and Gemma's."""
ALL_FAMILIES = FAMILIES | ODD_FAMILIES


def byte_level() -> Tokenizer:
    """Byte-level BPE: any text is bytes, a blank goes with the word behind it."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(WORDS, trainer)
    return backend


def metaspace(scheme: str) -> Tokenizer:
    """SentencePiece-like BPE, as converted for Llama 2: blanks are "▁", unknown characters are bytes.

    With "legacy" the normaliser puts a blank in front of every text between special tokens; with "first" there is one
    in front of the whole text only.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=140, special_tokens=list(LLAMA_TOKENS), show_progress=False)
    backend.train_from_iterator(WORDS, trainer)
    learnt = json.loads(backend.to_str())["model"]
    words = sorted(learnt["vocab"].keys() - set(LLAMA_TOKENS), key=learnt["vocab"].__getitem__)
    pieces = [*LLAMA_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [(left, right) for left, right in learnt["merges"]]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


@lru_cache(maxsize=32)
def tokenizer_of(name: str) -> Any:
    """The tokenizer of a family, with its template and an image token."""
    family = ALL_FAMILIES[name]
    backend = byte_level() if family.engine == "bytes" else metaspace(family.engine)
    if name == "qwen":
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(
        [AddedToken(text, rstrip=text in family.rstrip, normalized=False, special=True) for text in family.special]
    )
    backend.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return dressed(backend, family.template, bos_token=family.bos, eos_token=family.eos)


def dressed(backend: Tokenizer, template: str | None, **named: str | None) -> Any:
    """A transformers tokenizer over an engine."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = template
    return tokenizer


def written(tokenizer: Any, ids: list[int]) -> str:
    """The text of ids in the middle of a text, where no blank is cut off in front."""
    anchor = tokenizer.convert_tokens_to_ids("a")
    return str(tokenizer.decode([anchor, *ids])).removeprefix("a")
