"""The plugin without lmms-eval: its argument tuples are read, and requests are answered in batches of any size.

tests/lmms/ runs it in lmms-eval.
"""

import importlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.evaluation.tasks.config import TaskAnswer, TaskConfig, TaskData
from fvl_lightning.evaluation.tasks.lmms_command import lmms_eval_command
from fvl_lightning.inference.generation import Sampling, answer, encode, user_message
from fvl_lightning.inference.likelihood import answer_ids
from fvl_lightning.lmms_eval.requests import (
    KNOWN_SETTINGS,
    MAX_NEW_TOKENS,
    chat_generation,
    likelihood,
    simple_generation,
)
from fvl_lightning.modeling.build import LoadedModel
from tests.test_layers import ROOT, sources
from tests.tiny_models import tiny_talker

WRAPPER = "fvl_lightning.lmms_eval.wrapper"


def picture(seed: int) -> Image.Image:
    colour = tuple(torch.randint(256, (3,), generator=torch.Generator().manual_seed(seed)).tolist())
    image = Image.new("RGB", (9, 14), colour)
    image.paste((255, 255, 255), (0, 0, 3 + seed % 3, 7))
    return image


DOCS = [
    {"text": "w7", "images": [0]},
    {"text": "w8 w9 w10", "images": [1, 2]},
    {"text": "w12", "images": []},
    {"text": "w20 w21", "images": [0]},
]
DOCUMENTS = {"colours": {"test": DOCS}}
SETTINGS = {"max_new_tokens": 6, "temperature": 0, "until": ["\n\n"]}


def visuals(doc: dict[str, Any]) -> list[Image.Image]:
    return [picture(number) for number in doc["images"]]


def conversation(doc: dict[str, Any]) -> list[dict[str, Any]]:
    images = [{"type": "image", "url": image} for image in visuals(doc)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": doc["text"]}]}]


def simple(number: int, **settings: Any) -> tuple[Any, ...]:
    return DOCS[number]["text"], SETTINGS | settings, visuals, number, "colours", "test"


def chat(number: int, **settings: Any) -> tuple[Any, ...]:
    return DOCS[number]["text"], conversation, SETTINGS | settings, number, "colours", "test"


@dataclass
class Instance:
    """Stands for lmms_eval's."""

    args: tuple[Any, ...]


@dataclass
class GenerationResult:
    """Stands for lmms_eval's."""

    text: Any


class Base:
    """Stands for lmms_eval's base class of models."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: Any = {}

    def clean(self) -> None:
        pass


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_talker()


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel) -> Iterator[Any]:
    """The module of the wrappers, over stand-ins for lmms_eval; every model that it opens is the tiny one."""
    names = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": Base},
             "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "Instance": Instance}}  # fmt: skip
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules.pop(WRAPPER, None)
    module = importlib.import_module(WRAPPER)
    monkeypatch.setattr(module, "answering_model", lambda reference, device: loaded)
    yield module
    sys.modules.pop(WRAPPER)  # it holds the stand-ins


def opened(kind: Any, **arguments: Any) -> Any:
    model = kind("model", device="cpu", **arguments)
    model.task_dict = DOCUMENTS
    return model


@pytest.fixture(scope="module")
def wanted(loaded: LoadedModel) -> list[str]:
    """What the model answers to each document by itself."""
    prompts = [encode(loaded, [user_message(visuals(doc), doc["text"])]) for doc in DOCS]
    return [answer(loaded, [prompt], Sampling(max_tokens=6))[0] for prompt in prompts]


@pytest.mark.parametrize("batch_size", ["1", 3, "auto"])
def test_both_interfaces_answer_as_the_kit_does(wrapper: Any, wanted: list[str], batch_size: Any) -> None:
    assert len(set(wanted)) == len(DOCS), "answers that are all alike compare nothing"
    order = [2, 0, 3, 1, 0]
    for kind, request in ((wrapper.SimpleWrapper, simple), (wrapper.ChatWrapper, chat)):
        found = opened(kind, batch_size=batch_size).generate_until([Instance(request(number)) for number in order])
        assert found == [wanted[number] for number in order]
    assert (wrapper.SimpleWrapper.is_simple, wrapper.ChatWrapper.is_simple) == (True, False)


def test_requests_of_one_batch_are_decoded_each_in_its_way(wrapper: Any, wanted: list[str]) -> None:
    stop = wanted[0].split()[2]
    requests = [simple(0), simple(0, max_new_tokens=2), simple(0, until=f" {stop}"), simple(1)]
    found = opened(wrapper.SimpleWrapper, batch_size=4).generate_until(list(map(Instance, requests)))
    assert found == [wanted[0], " ".join(wanted[0].split()[:2]), " ".join(wanted[0].split()[:2]), wanted[1]]


def test_an_image_of_a_batch_is_encoded_once(
    wrapper: Any, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    forward = loaded.model.encoder.forward
    monkeypatch.setattr(loaded.model.encoder, "forward", lambda images: encoded.append(len(images)) or forward(images))
    opened(wrapper.SimpleWrapper, batch_size=8).generate_until([Instance(simple(number)) for number in (0, 3, 1, 0)])
    assert encoded == [3]


def test_likelihoods_are_losses_per_token_with_the_end_of_the_answer(wrapper: Any, loaded: LoadedModel) -> None:
    choices = [(0, " w20"), (1, " w21 w22"), (0, lambda doc: doc["text"]), (2, "w23")]
    requests = [(DOCS[number]["text"], choice, visuals, number, "colours", "test") for number, choice in choices]
    found = opened(wrapper.SimpleWrapper, batch_size=3).loglikelihood(list(map(Instance, [*requests, ("w9", "w8")])))
    words = ["w20", "w21 w22", "w7", "w23", "w8"]
    conversations = [[user_message(visuals(DOCS[number]), DOCS[number]["text"])] for number, _ in choices]
    for result, messages, text in zip(found, [*conversations, [user_message([], "w9")]], words, strict=True):
        prompt = encode(loaded, messages)
        ids = answer_ids(loaded.processor.encoder, messages, prompt.ids, text)
        assert loaded.tokenizer.decode(ids) == f"{text} <eos>"
        inputs = {} if prompt.pixel_values is None else {"pixel_values": prompt.pixel_values}
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*prompt.ids, *ids]]), use_cache=False, **inputs).logits[0]
        logits = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)
        assert result.text[0] == pytest.approx(-float(logits[range(len(ids)), ids].mean()), abs=1e-5)
        assert result.text[1] is bool((logits.argmax(-1) == torch.tensor(ids)).all())


def test_a_model_that_was_freed_is_loaded_again(wrapper: Any, wanted: list[str]) -> None:
    model = opened(wrapper.SimpleWrapper)
    model.clean()
    assert model._loaded is None
    assert model.generate_until([Instance(simple(0))]) == [wanted[0]]


@pytest.mark.parametrize(
    ("settings", "sampling", "stop"),
    [
        ({}, Sampling(MAX_NEW_TOKENS), ()),
        ({"max_new_tokens": 8, "until": ["a", ""]}, Sampling(8), ("a",)),
        ({"temperature": 0.5, "top_p": 0.9}, Sampling(MAX_NEW_TOKENS, 0.5, 0.9), ()),
        ({"temperature": 0.5, "do_sample": False, "top_p": 0}, Sampling(MAX_NEW_TOKENS), ()),
        ({"do_sample": True, "num_beams": 3}, Sampling(MAX_NEW_TOKENS, 1.0, beams=3), ()),
    ],
)
def test_settings_of_a_task_become_those_of_the_kit(settings: dict[str, Any], sampling: Sampling, stop: Any) -> None:
    request = simple_generation(("w7", settings, None, 0, "colours", "test"), DOCUMENTS)
    assert (request.sampling, request.stop) == (sampling, stop)
    assert request.messages() == [{"role": "user", "content": [{"type": "text", "text": "w7"}]}]


def test_a_setting_without_effect_is_named(caplog: pytest.LogCaptureFixture) -> None:
    simple_generation(simple(0, image_aspect_ratio="pad"), DOCUMENTS)
    assert "fvl_lightning ignores image_aspect_ratio" in caplog.text


def test_images_stand_where_the_text_has_them() -> None:
    one, two = picture(1), picture(2)
    file = io.BytesIO()
    two.save(file, "PNG")

    def parts(text: str, images: Any) -> list[Any]:
        request = simple_generation((text, {}, lambda doc: images, 0, "colours", "test"), DOCUMENTS)
        return [part.get("text", part.get("image")) for part in request.messages()[0]["content"]]

    assert parts("w7 <image> w8 <image>", [one, two]) == ["w7 ", one, " w8 ", two]
    message = conversation({"text": "w7 <image 2> w8", "images": [1, 2]})
    request = chat_generation(("", lambda doc: message, {}, 0, "colours", "test"), DOCUMENTS)
    found = request.messages()[0]["content"]
    assert found[1]["image"] is message[0]["content"][1]["url"], "as in the interface without conversations"
    assert [part.get("text") for part in found] == ["w7 ", None, " w8"]
    assert parts("w7", [[one], [two]]) == [one, two, "w7"]
    assert parts("w7 <image> <image> <image>", [one, two]) == [one, two, "w7 <image> <image> <image>"]
    assert parts("w7", {"bytes": file.getvalue(), "path": None}) == [file.getvalue(), "w7"]
    assert likelihood(("w9", " w8"), {}).messages() == [user_message([], "w9")]


def test_an_image_that_was_cut_is_refused_although_lmms_eval_lets_it_pass(
    wrapper: Any, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    picture(0).save(file := io.BytesIO(), "PNG")
    model = opened(wrapper.SimpleWrapper)

    def answered(content: bytes) -> list[str]:
        arguments = ("w7", SETTINGS, lambda doc: [{"bytes": content}], 0, "colours", "test")
        return model.generate_until([Instance(arguments)])

    assert answered(file.getvalue()) == [wanted[0]]
    with pytest.raises(DataError, match=r"task colours, document 0: not a readable PNG"):
        answered(file.getvalue()[:60])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_what_cannot_be_answered_names_the_document(wrapper: Any) -> None:
    video = {"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}
    request = chat_generation(("w7", lambda doc: [video], {}, 2, "colours", "test"), DOCUMENTS)
    with pytest.raises(DataError, match="task colours, document 2: a message has a part of type video"):
        request.messages()
    model = opened(wrapper.SimpleWrapper)
    with pytest.raises(DataError, match=r"task colours, document 1: .*none.png"):
        model.generate_until([Instance(("w7", {}, lambda doc: ["none.png"], 1, "colours", "test"))])
    with pytest.raises(ConfigError, match="tasks of several rounds are not supported"):
        model.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"adaptor": "runs/b"}, r"--model_args: unknown argument 'adaptor', .* mean 'adapter'"),
        ({"precision": "16"}, "--model_args: unknown precision '16', allowed: 32-true, bf16-mixed"),
        ({"batch_size": "many"}, "--batch_size: expected a number from 1 on or auto, found many"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_sentence(wrapper: Any, arguments: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        opened(wrapper.SimpleWrapper, **arguments)


PAGE = (ROOT / "docs" / "evaluation_lmms_eval.md").read_text(encoding="utf-8")


class VlmBase:
    """Stands for vlmeval's BaseModel: a message is a list of parts with a type and a value."""

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        assert all(set(part) == {"type", "value"} for part in message)
        return self.generate_inner(message, dataset)  # type: ignore[attr-defined]


def test_the_adapter_for_vlmevalkit_answers_as_the_kit_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: LoadedModel, wanted: list[str]
) -> None:
    for name, content in {"vlmeval": {}, "vlmeval.vlm": {}, "vlmeval.vlm.base": {"BaseModel": VlmBase}}.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("fvl_lightning.api.model.answering_model", lambda reference, device: loaded)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(code, names := {})
    model = names["FlorenceVLRun"](str(tmp_path), max_tokens=6)
    for doc, answered in zip(DOCS, wanted, strict=True):
        message = [{"type": "text", "value": doc["text"]}]
        for number, image in reversed(list(enumerate(visuals(doc)))):
            image.save(path := tmp_path / f"{number}.png")
            message.insert(0, {"type": "image", "value": str(path)})
        assert model.generate(message) == answered


def test_the_page_names_the_arguments_and_the_settings() -> None:
    assert all(f"`{name}`" in PAGE for name in KNOWN_SETTINGS)
    (command,) = re.findall(r"^```bash\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    tasks = [TaskConfig("POPE", TaskData(), lmms_eval="pope"), TaskConfig("T", TaskData(), lmms_eval="textvqa_val")]
    assert command == lmms_eval_command("runs/demo/gated/finetune", tasks)


def test_the_command_has_each_task_once() -> None:
    tasks = [
        TaskConfig("Perception", TaskData(), lmms_eval="mme"),
        TaskConfig("Cognition", TaskData(), lmms_eval="mme", answer=TaskAnswer(by="likelihood")),
    ]
    command = lmms_eval_command("runs/a b", tasks, 100, "out", adapter="runs/lora", precision="bf16-mixed")
    assert shlex.split(command) == [
        "python", "-m", "lmms_eval", "--model", "fvl_lightning",
        "--model_args", "pretrained=runs/a b,adapter=runs/lora,precision=bf16-mixed",
        "--tasks", "mme", "--batch_size", "16", "--limit", "100", "--force_simple", "--log_samples",
        "--output_path", "out",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--print: lmms-eval has no task for own"):
        lmms_eval_command("runs/a", [*tasks, TaskConfig("Own", TaskData(), name="own")])
    with pytest.raises(ConfigError, match="lmms-eval cuts runs/lr=1,2 at its comma"):
        lmms_eval_command("runs/lr=1,2", tasks)


def test_lmms_eval_is_imported_by_the_wrapper_alone() -> None:
    """A module that is imported with the kit would need lmms-eval, which is not one of its packages."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sources(ROOT)}
    statement = re.compile(r"^(from|import) (lmms_eval|fvl_lightning\.lmms_eval\.wrapper)\b", re.MULTILINE)
    assert {name for name, text in texts.items() if statement.search(text)} == {"wrapper"}
