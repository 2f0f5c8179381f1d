"""The layers that get adapters, the parameters that are trained, and the settings that are refused."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from fvl_lightning.core.config.lora import LoraComponentConfig, LoraConfig
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import component_of, count_parameters, freeze, is_trainable
from fvl_lightning.training.lora import add_adapters, check_lora, linear_layers
from tests.stages.fitting import batches_of, build_stage, experiment_of, fit
from tests.tiny_models import LLAMA, named_tensors, rows, snapshot, tiny_model

LANGUAGE = {"encoder": "frozen", "fusion": "full", "projector": "full", "language_model": "lora"}
BOTH = LANGUAGE | {"encoder": "lora"}
QKV = ["q_proj", "k_proj", "v_proj"]


def adapted_stage(folder: Path, trainable: dict[str, str], lora: dict[str, Any] | None = None, **changes: Any) -> Stage:
    """The finetune stage over the tiny model, adapters in place."""
    stage = build_stage("finetune", folder, trainable=trainable, lora=lora, **changes)
    stage.adapt(folder / "base")
    return stage


def in_base(name: str) -> str:
    """The name a value of the base had before adapters."""
    return name.replace(".base_layer.", ".")


@pytest.mark.parametrize("trainable", [LANGUAGE, BOTH, LANGUAGE | {"encoder": "lora", "language_model": "frozen"}])
@pytest.mark.parametrize("dora", [False, True])
def test_only_adapters_and_what_is_full_move(trainable: dict[str, str], dora: bool, tmp_path: Path) -> None:
    """Every other parameter and buffer bit for bit; every matrix that learns moves."""
    lora = {"rank": 2, "dora": dora, "dropout": 0.1}
    stage = adapted_stage(
        tmp_path, trainable, lora, optimizer={"learning_rate": 0.01, "weight_decay": 0.1}, trainer={"max_steps": 3}
    )
    before = snapshot(stage.model)
    fit(stage, batches_of("finetune", 3), tmp_path)
    buffers = {name for name, _ in stage.model.named_buffers()}
    adapters = 0
    for name, tensor in named_tensors(stage.model):
        if name in buffers or not is_trainable(name, stage.trainable):
            assert torch.equal(tensor, before[name]), f"{name} moved"
        elif tensor.ndim > 1:
            assert not torch.equal(tensor, before[name]), f"{name} stayed"
            adapters += ".lora_" in name
    assert adapters >= 2 * 7 * LLAMA["num_hidden_layers"] if trainable["language_model"] == "lora" else adapters > 0


class Gradients(Callback):
    """Names of the parameters with a gradient that is not zero, at each step."""

    def __init__(self) -> None:
        self.reached: list[set[str]] = []

    def on_before_optimizer_step(self, trainer: Any, stage: Stage, *_: Any) -> None:
        found = {name for name, p in stage.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        self.reached.append(found)


def test_gradients_reach_what_learns_and_nothing_else(tmp_path: Path) -> None:
    """B is zero at the first step, so that A hears of it at the second."""
    stage = adapted_stage(tmp_path, BOTH, {"rank": 2}, trainer={"max_steps": 2}, optimizer={"learning_rate": 0.01})
    gradients = Gradients()
    fit(stage, batches_of("finetune", 2), tmp_path, [gradients])
    meant = {name for name, p in stage.model.named_parameters() if p.requires_grad}
    first, second = gradients.reached
    assert first <= meant
    assert second <= meant
    assert {name for name in meant - second if ".lora_" in name} == set()
    assert {name for name in meant - first if ".lora_B." in name} == set()


def test_a_model_with_fresh_adapters_computes_what_it_did(tmp_path: Path) -> None:
    batch, model = rows(2), tiny_model(fusion="gated").requires_grad_(False)
    before = model(batch.token_ids, pixel_values=batch.images).logits
    random_state = torch.get_rng_state()
    add_adapters(model, BOTH, LoraConfig(rank=3), seed=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = model.requires_grad_(False)(batch.token_ids, pixel_values=batch.images).logits
    assert torch.equal(after, before)


def initial(model_seed: int, trainable: dict[str, str], settings: LoraConfig, seed: int) -> dict[str, Tensor]:
    model = tiny_model(seed=model_seed)
    add_adapters(model, trainable, settings, seed)
    return {name: tensor for name, tensor in snapshot(model).items() if ".lora_A." in name}


def test_initial_values_are_of_the_seed_and_the_name() -> None:
    """Not of what else is adapted, nor of the random numbers drawn before."""
    torch.manual_seed(1)
    ours = initial(0, LANGUAGE, LoraConfig(rank=4, targets=QKV), seed=3)
    torch.manual_seed(2)
    wider = initial(1, BOTH, LoraConfig(rank=4), seed=3)
    other = initial(0, LANGUAGE, LoraConfig(rank=4, targets=QKV), seed=4)
    assert len(ours) == 3 * LLAMA["num_hidden_layers"]
    assert all(torch.equal(wider[name], value) for name, value in ours.items())
    assert not any(torch.equal(other[name], value) for name, value in ours.items())
    assert len({tuple(value.flatten().tolist()) for value in ours.values()}) == len(ours)


def test_dropout_is_of_the_adapters_alone(tmp_path: Path) -> None:
    stage = adapted_stage(tmp_path, LANGUAGE, {"rank": 2, "dropout": 0.5})
    stage.train()
    on = {
        name for name, module in stage.model.named_modules() if isinstance(module, torch.nn.Dropout) and module.training
    }
    assert on
    assert all(".lora_dropout." in name for name in on)
    assert not stage.model.encoder.training
    assert not stage.model.language_model.model.training
    assert stage.model.projector.training


def test_a_rank_that_no_matrix_has_is_said(caplog: pytest.LogCaptureFixture) -> None:
    settings = LoraConfig(rank=4, components={"encoder": LoraComponentConfig(rank=99)})
    add_adapters(tiny_model(), BOTH, settings, seed=0)
    (said,) = caplog.messages
    assert re.match(r"lora.rank 99 of encoder is above the smaller side of encoder\.\S+, \d+: its adapter", said)


def test_rank_and_alpha_of_a_component_of_its_own() -> None:
    """encoder is a name in many models: the pattern means the component."""
    settings = LoraConfig(rank=4, alpha=4, components={"language_model": LoraComponentConfig(rank=2, targets=QKV)})
    model = tiny_model()
    add_adapters(model, BOTH, settings, seed=0)
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    for name, layer in layers.items():
        encoder = name.startswith("encoder.")
        assert layer.lora_A["default"].out_features == (4 if encoder else 2)
        assert layer.scaling["default"] == (1 if encoder else 2)
        assert encoder or name.rpartition(".")[2] in QKV


@pytest.mark.parametrize(("rslora", "expected"), [(False, 2.0), (True, 8 / 2)])
def test_the_scale_of_an_update(rslora: bool, expected: float) -> None:
    model = tiny_model()
    add_adapters(model, LANGUAGE, LoraConfig(rank=4, rslora=rslora), seed=0)
    scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
    assert scales == {expected}


def test_all_linear_is_every_linear_layer_but_the_head() -> None:
    model = tiny_model(llama=LLAMA | {"tie_word_embeddings": False})
    found = linear_layers(model, "language_model", "all-linear")
    assert len(found) == 7 * LLAMA["num_hidden_layers"]
    assert not any("lm_head" in name for name in found)
    assert linear_layers(model, "language_model", ["lm_head"]) == ["language_model.model.lm_head"]
    inside = linear_layers(model, "encoder", "all-linear")
    assert inside
    assert all(component_of(name) == "encoder" for name in inside)


def test_targets_by_whole_parts_or_by_an_expression() -> None:
    model = tiny_model()
    assert linear_layers(model, "language_model", ["self_attn.q_proj"]) == linear_layers(
        model, "language_model", r"language_model\..*\.q_proj"
    )
    one = r"language_model\.model\.model\.layers\.1\.mlp\.(up|down)_proj"
    assert linear_layers(model, "language_model", one) == [
        f"language_model.model.model.layers.1.mlp.{name}_proj" for name in ("up", "down")
    ]
    add_adapters(model, LANGUAGE, LoraConfig(rank=2, targets=one), seed=0)
    assert sum(hasattr(module, "lora_A") for module in model.modules()) == 2


def test_adapters_on_the_meta_device_count_as_the_real_ones(tmp_path: Path) -> None:
    """So that sizes are known before anything is loaded."""
    experiment = experiment_of("finetune", tmp_path, trainable={"language_model": "lora"}, lora={"rank": 4})
    stages = [experiment.stage.component.build(experiment, device) for device in ("cpu", "meta")]
    for stage in stages:
        add_adapters(stage.model, stage.trainable, LoraConfig(rank=4), seed=0)
    ours, meta = (count_parameters(stage.model) for stage in stages)
    assert ours == meta
    per_layer = 4 * (12 + 12) * 2 + 4 * (12 + 6) * 2 + 4 * (12 + 20) * 3
    assert ours["language_model"]["trainable"] == per_layer * LLAMA["num_hidden_layers"]


# What is refused.


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (
            ["q_prj"],
            "lora.targets: unknown linear layer of language_model 'q_prj', allowed: down_proj, gate_proj, k_proj, "
            "o_proj, q_proj, up_proj, v_proj; did you mean 'q_proj'?",
        ),
        (["lm_head"], "lora.targets: language_model.model.lm_head shares its weights with the table of tokens"),
        ("q_proj", "lora.targets: 'q_proj' fits no linear layer of language_model, such as "),
        ("q_proj", "; did you mean [q_proj]?"),
        ("all_linear", "; did you mean all-linear?"),
        ("(", "lora.targets: '(' is no regular expression"),
        ([], "lora.targets: expected all-linear, a list of names or an expression, found []"),
        ([3], "found [3]"),
        (["embed_tokens"], "unknown linear layer of language_model 'embed_tokens'"),
    ],
)
def test_targets_that_are_none(targets: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        linear_layers(tiny_model(), "language_model", targets)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "trainable", "says"),
    [
        (LoraConfig(), {"language_model": "full"}, "lora: no component is trained with LoRA, so these settings have"),
        (
            LoraConfig(components={"encodr": LoraComponentConfig()}),
            BOTH,
            "lora.components: unknown adapted component 'encodr', allowed: encoder, language_model; did you mean "
            "'encoder'?",
        ),
        (LoraConfig(components={"encoder": LoraComponentConfig()}), LANGUAGE, "write trainable.encoder=lora"),
        (LoraConfig(quantization="bfloat16"), {"encoder": "lora"}, "it needs a language model trained with LoRA"),
        (LoraConfig(quantization="4bit"), {"encoder": "lora"}, "it needs a language model trained with LoRA"),
    ],
)
def test_settings_that_nothing_takes(settings: LoraConfig, trainable: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_lora(settings, trainable, tiny_model())


def test_4bit_without_its_device_or_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^lora.quantization: 4bit needs a CUDA device, this machine has none"):
        check_lora(LoraConfig(quantization="4bit"), LANGUAGE, tiny_model())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^lora.quantization: 4bit needs bitsandbytes, install it with the extra"):
        check_lora(LoraConfig(quantization="4bit"), LANGUAGE, tiny_model())


def test_weights_in_bfloat16_are_those_that_autocast_computes_with(tmp_path: Path) -> None:
    """The same bits of loss and gradients; adapters, norms and embeddings stay float32, and the base keeps its hash."""
    batch, found = rows(2), []
    for quantization in (None, "bfloat16"):
        settings = {"rank": 2, "quantization": quantization}
        stage = adapted_stage(tmp_path, LANGUAGE, settings, trainer={"precision": "bf16-mixed"})
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = stage.compute(batch)[0].sum
        loss.backward()
        gradients = {name: p.grad for name, p in stage.model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients, stage.frozen_hash))
    plain, narrow = found
    torch.testing.assert_close(narrow[:2], plain[:2], atol=0, rtol=0)
    assert narrow[2] == plain[2]
    held = {name for name, p in stage.model.named_parameters() if p.dtype == torch.bfloat16}
    assert len(held) == 7 * LLAMA["num_hidden_layers"], "the head is the token table"
    assert all("base_layer.weight" in name for name in held)
    stage.on_fit_start()  # computes without autocast


def test_a_stage_refuses_before_it_loads_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^lora: no component is trained with LoRA"):
        build_stage("finetune", tmp_path, lora={})
    with pytest.raises(ConfigError, match=r"^trainable.encoder: stage encoder_pretrain trains an encoder in full$"):
        build_stage("encoder_pretrain", tmp_path, trainable={"encoder": "lora"})


def test_adapters_that_were_forgotten_are_missed_at_the_first_step(tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path, trainable={"language_model": "lora"}, trainer={"max_steps": 1})
    with pytest.raises(ConfigError, match="trainable: language_model must learn but received no gradient"):
        fit(stage, batches_of("finetune", 1), tmp_path)


def test_settings_are_written_as_any_other(tmp_path: Path) -> None:
    from fvl_lightning.core.config.loading import load_config

    (tmp_path / "a.yaml").write_text("trainable: {language_model: lora}\n", encoding="utf-8")
    config = load_config(ExperimentConfig, tmp_path / "a.yaml")
    assert config.lora is None
    words = ["lora.rank=4", "lora.targets=[q_proj, v_proj]", "lora.components.encoder.rank=8"]
    lora = load_config(ExperimentConfig, tmp_path / "a.yaml", words).lora
    assert isinstance(lora, LoraConfig)
    expected = LoraConfig(4, targets=["q_proj", "v_proj"], components={"encoder": LoraComponentConfig(rank=8)})
    assert dataclasses.asdict(lora) == dataclasses.asdict(expected)
    for word, says in [
        ("lora.rank=0", "lora.rank on the command line must be at least 1, not 0"),
        ("lora.rnk=3", "did you mean 'rank'?"),
        ("lora.quantization=8bit", "unknown value '8bit', allowed: 4bit, bfloat16"),
        ("lora.quantization=bfloat16", "bfloat16 needs trainer.precision=bf16-mixed, which rounds anyway"),
        ("lora.components.encoder.dropout=0.1", "unknown key 'dropout'"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(says)):
            load_config(ExperimentConfig, tmp_path / "a.yaml", [word])


def test_freezing_again_leaves_adapters_learning() -> None:
    model = tiny_model()
    add_adapters(model, LANGUAGE, LoraConfig(rank=2), seed=0)
    freeze(model, LANGUAGE)
    wanting = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in wanting if component_of(name) == "language_model"} == {
        name for name, _ in model.named_parameters() if ".lora_" in name
    }
