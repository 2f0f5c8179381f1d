"""A saved model among Hugging Face's own: Auto classes in a fresh process, pipeline, Trainer and peft."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoProcessor, Trainer, TrainingArguments, pipeline

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.build import load_model
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor, make_processor
from tests.tiny_models import BOS, EOS, IMAGE, PAD, PIXELS, snapshot, tiny_model, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message.role }} {{ message.content }} "
    "{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)
SIDES = (PIXELS, PIXELS + 9)
"""Height and width of the test's pictures: none is the model's square."""

FRESH = """
import sys
import fvl_lightning.auto
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

folder = sys.argv[1]
torch.set_num_threads(int(sys.argv[2]))  # another number gives other bits
model = AutoModelForImageTextToText.from_pretrained(folder)
inputs = torch.load(folder + "/inputs.pt", weights_only=True)
processor = AutoProcessor.from_pretrained(folder)
logits = model.eval()(**inputs).logits
assert AutoConfig.from_pretrained(folder).model_type == "florence_vl"
assert torch.equal(logits, torch.load(folder + "/logits.pt", weights_only=True)), "other logits"
print(type(model).__name__, type(processor).__name__)
"""


def picture(seed: int) -> Image.Image:
    """Seeded noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIDES, 3), dtype=np.uint8))


def conversation(seed: int, question: str = "w7 w8", images: int = 1) -> list[dict[str, Any]]:
    """A question about pictures."""
    shown = [{"type": "image", "image": picture(seed + k)} for k in range(images)]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


def answered(seed: int, words: str) -> list[dict[str, Any]]:
    """The question and an answer."""
    return [*conversation(seed), {"role": "assistant", "content": [{"type": "text", "text": words}]}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("saved")
    model, tokenizer = tiny_model(fusion="gated"), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, tokenizer.pad_token_id
    model.save_pretrained(folder, max_shard_size="20KB")
    make_processor(model.image_spec, tokenizer, "pad").save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture
def processor(saved: Path) -> FlorenceVLProcessor:
    """As transformers finds it."""
    found = AutoProcessor.from_pretrained(saved)
    assert isinstance(found, FlorenceVLProcessor)
    return found


@pytest.fixture
def model(saved: Path) -> FlorenceVLForConditionalGeneration:
    """The model of the folder."""
    return load_model(saved).model


def chat(processor: FlorenceVLProcessor, conversations: list[Any], **words: Any) -> dict[str, Tensor]:
    """Inputs of the model."""
    asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return dict(processor.apply_chat_template(conversations, **asked | words))


@pytest.mark.slow
def test_a_fresh_process_that_imports_the_kit_gives_the_same_logits(
    saved: Path, processor: FlorenceVLProcessor, model: FlorenceVLForConditionalGeneration
) -> None:
    inputs = chat(processor, [conversation(0), conversation(1, "w9")])
    torch.save(inputs, saved / "inputs.pt")
    torch.save(model(**inputs).logits.detach(), saved / "logits.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(saved), str(torch.get_num_threads())],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["FlorenceVLForConditionalGeneration", "FlorenceVLProcessor"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-200]), "is not a readable safetensors file"),
        (lambda file: file.write_bytes(b"x"), "is not a readable safetensors file"),
        (lambda file: file.unlink(), "lacks 1 of the 7 files of its index"),
        (lambda file: save_file(dict([*load_file(file).items()][1:]), file, {"format": "pt"}), "lacks 1 of"),
        (
            lambda file: save_file({k: v + torch.nan for k, v in load_file(file).items()}, file, {"format": "pt"}),
            "holds NaN or infinite numbers, in ",
        ),
    ],
    ids=["cut short", "another file", "missing", "a weight left out", "no numbers"],
)
def test_a_broken_model_folder_is_one_sentence(saved: Path, tmp_path: Path, broken: Any, said: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    broken(sorted(folder.glob("model-*.safetensors"))[1])
    with pytest.raises(DataError, match=f"{folder}.*{said}") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_image_features_are_what_is_spliced_in(
    processor: FlorenceVLProcessor, model: FlorenceVLForConditionalGeneration
) -> None:
    pixels = processor.image_processor([picture(0), picture(1)]).pixel_values
    features = model.get_image_features(pixels)
    assert features.shape == (2, model.image_spec.tokens_per_image, model.language_model.dim)
    torch.testing.assert_close(features, model.embed_images(pixels)[0], rtol=0, atol=0)


def test_the_pipeline_answers_offline(saved: Path, processor: FlorenceVLProcessor) -> None:
    ask = pipeline("image-text-to-text", model=str(saved))
    inputs = chat(processor, [conversation(3)])
    options = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [PAD, BOS, EOS, IMAGE]}
    written = load_model(saved).model.generate(**inputs, **options)
    expected = processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    words = {"generate_kwargs": options, "return_full_text": False}
    [answer] = ask(text=conversation(3), **words)
    assert answer["generated_text"].split() == expected.split()
    assert len(expected.split()) == 5
    [answer] = ask(images=picture(3), text="<image> w7", **words)
    assert answer["generated_text"]
    with pytest.raises(ConfigError, match="no use for do_sample"):
        ask(text=conversation(3), do_sample=False)


class Rows(torch.utils.data.Dataset):
    """Eight questions with answers of unlike length."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return answered(index, " ".join(["w11"] * (1 + index % 4)))


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_transformers_trainer_takes_the_mean_over_all_tokens_of_a_step(
    accumulate: int, tmp_path: Path, saved: Path, processor: FlorenceVLProcessor
) -> None:
    def collate(conversations: list[Any]) -> dict[str, Tensor]:
        words = {"add_generation_prompt": False, "return_assistant_tokens_mask": True, "padding_side": "right"}
        inputs = chat(processor, conversations, **words)
        supervised = inputs.pop("assistant_masks").bool()
        return inputs | {"labels": inputs["input_ids"].masked_fill(~supervised, IGNORE_INDEX)}

    def trained(accumulate: int) -> dict[str, Tensor]:
        model = load_model(saved).model
        arguments = TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=4 // accumulate, learning_rate=1e-2, seed=1,
            gradient_accumulation_steps=accumulate, remove_unused_columns=False, report_to="none", use_cpu=True,
            lr_scheduler_type="constant", disable_tqdm=True, save_strategy="no", optim="sgd",
        )
        Trainer(model, arguments, data_collator=collate, train_dataset=Rows()).train()
        return snapshot(model)

    before, after, whole = snapshot(load_model(saved).model), trained(accumulate), trained(1)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, value in after.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)


def test_peft_wraps_it(processor: FlorenceVLProcessor, model: FlorenceVLForConditionalGeneration) -> None:
    inputs = chat(processor, [conversation(0)])
    plain = model(**inputs).logits.detach()
    targets = r"language_model\..*\.(q_proj|v_proj)"
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, modules_to_save=["projector"]))
    torch.testing.assert_close(wrapped(**inputs).logits, plain, rtol=0, atol=0)
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = IGNORE_INDEX
    wrapped(**inputs, labels=labels).loss.backward()
    moved = {name for name, parameter in wrapped.named_parameters() if parameter.grad is not None}
    assert moved
    assert all("lora_" in name or "projector.modules_to_save" in name for name in moved)
    assert wrapped.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_prompts_of_a_batch_are_those_one_by_one_to_the_tenth_digit(
    processor: FlorenceVLProcessor, model: FlorenceVLForConditionalGeneration
) -> None:
    def logits(inputs: dict[str, Tensor]) -> Tensor:
        doubled = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        words = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        return torch.stack(model.generate(**doubled, **words).logits, dim=1)

    model.double()
    asked = [conversation(0, "w7 w8 w9", images=2), conversation(5, "w10"), [{"role": "user", "content": "w12 w13"}]]
    together = logits(chat(processor, asked))
    for row, one in zip(together, asked, strict=True):
        torch.testing.assert_close(row, logits(chat(processor, [one]))[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_of_a_batch_is_that_one_by_one(
    cache: bool, beams: int, processor: FlorenceVLProcessor, model: FlorenceVLForConditionalGeneration
) -> None:
    asked = [conversation(0, "w7 w8 w9", images=2), conversation(5, "w10"), conversation(7, "w4 w5", images=3)]
    words = {"max_new_tokens": 6, "do_sample": False, "use_cache": cache, "num_beams": beams}
    together = chat(processor, asked)
    written = model.generate(**together, **words)[:, together["input_ids"].shape[1] :]
    for row, one in zip(written, asked, strict=True):
        alone = chat(processor, [one])
        assert torch.equal(row, model.generate(**alone, **words)[0, alone["input_ids"].shape[1] :])


def test_every_beam_and_every_answer_sees_the_images_of_its_row(
    processor: FlorenceVLProcessor, model: FlorenceVLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = chat(processor, [conversation(0, images=2), conversation(5), conversation(7, images=3)])
    alone = model.embed_images(inputs["pixel_values"])[0].detach()
    shown, embed_images = [], model.embed_images
    encoded: list[int] = []
    model.encoder.register_forward_hook(lambda module, images, sources: encoded.append(len(images[0])))

    def embed(*images: Any) -> Any:
        embedded = embed_images(*images)
        shown.append(embedded.features)
        return embedded

    monkeypatch.setattr(model, "embed_images", embed)
    words = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    sampled = model.generate(**inputs, do_sample=True, top_k=1, num_return_sequences=2, **words)
    order = [0, 1, 0, 1, 2, 2, 3, 4, 5, 3, 4, 5]
    torch.testing.assert_close(shown[0], alone[order], rtol=0, atol=1e-6)
    assert encoded == [6], "the encoder ran again for what it had seen"
    greedy = model.generate(**inputs, do_sample=False, **words)
    assert torch.equal(sampled.sequences, greedy.sequences.repeat_interleave(2, dim=0))
    model.generate(**inputs, num_beams=3, max_new_tokens=2)
    torch.testing.assert_close(shown[2], alone[[0, 1] * 3 + [2] * 3 + [3, 4, 5] * 3], rtol=0, atol=1e-6)


def test_a_head_tied_to_its_table_is_tied_in_a_fresh_model(model: FlorenceVLForConditionalGeneration) -> None:
    head = model.language_model.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    assert head.weight is model.get_input_embeddings().weight
