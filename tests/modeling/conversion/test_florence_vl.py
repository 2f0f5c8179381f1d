"""Importing checkpoints of the original: every key and layout of files, the released sizes, and memory."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, Phi3ForCausalLM
from transformers.initialization import no_init_weights

from fvl_lightning.cli.models.import_checkpoint import florence_vl
from fvl_lightning.encoders.florence2_files import read_image_size
from fvl_lightning.modeling.build import load_model
from fvl_lightning.modeling.conversion.florence_vl import import_florence_vl, match_to_model
from fvl_lightning.modeling.conversion.florence_vl_config import ImportOptions, imported_config
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.processing.processor import IMAGE_TOKEN
from tests.conftest import ROOT
from tests.encoders import original
from tests.modeling.conversion.original_layout import PHI, TOWER, random_weights, save, save_weights, shapes

INSIDE = "model.vision_tower.vision_tower."
TABLE_COPIES = tuple(
    f"{INSIDE}language_model.{name}" for name in (
        "lm_head.weight", "final_logits_bias", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
    )
)
MILLION = 1e6

LARGE = copy.deepcopy(TOWER)
"""Florence-2-large."""
LARGE["vision_config"] |= {
    "dim_embed": [256, 512, 1024, 2048], "num_heads": [8, 16, 32, 64], "num_groups": [8, 16, 32, 64],
    "depths": [1, 1, 9, 1], "window_size": 12, "projection_dim": 1024,
}
LARGE["text_config"] |= {
    "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16,
    "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "max_position_embeddings": 4096,
}
RELEASED = {"mm_hidden_size": 1024, "mm_projector_type": "mlp3x_gelu", "num_hidden_layers": 32,
            "num_attention_heads": 32, "torch_dtype": "bfloat16", "tie_word_embeddings": False}
LLAMA_8B = {**RELEASED, "model_type": "llava_llama", "vocab_size": 128257, "hidden_size": 4096,
            "intermediate_size": 14336, "num_key_value_heads": 8}
PHI_3B = {**RELEASED, "model_type": "llava_phi", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
          "num_key_value_heads": 32, "pad_token_id": 32000}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(PHI)


def imported(folder: Path, **options: Any) -> FlorenceVLForConditionalGeneration:
    florence_vl(folder, folder / "out", **{"vision_tower": original.TOWER} | options)
    return load_model(folder / "out").model


def test_the_layout_is_the_originals() -> None:
    """What the other tests here make checkpoints with agrees with one the original wrote."""
    config = json.loads((original.CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    written = {name: tuple(tensor.shape) for name, tensor in original.tensors("llama/model.safetensors").items()}
    assert shapes(config, TOWER) == written


@pytest.mark.parametrize(
    ("config", "projector", "total"), [(LLAMA_8B, 50.34, 9010), (PHI_3B, 31.47, 4790)], ids=["8B", "3B"]
)
def test_every_key_of_the_released_sizes_has_a_place(config: dict[str, Any], projector: float, total: int) -> None:
    """Without memory: the original's keys on the meta device; the projectors' and 9.01 B of the 8B are published."""
    with torch.device("meta"), no_init_weights():
        model = FlorenceVLForConditionalGeneration(imported_config(config, LARGE, 768, 128300, ImportOptions()))
        theirs = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes(config, LARGE).items()}
    values, left_out = match_to_model(theirs, model, "here")
    assert set(values) == set(model.state_dict())
    assert left_out == len(theirs) - len(values)
    assert model.image_spec.tokens_per_image == 577
    held = sum(tensor.numel() for name, tensor in values.items() if name.startswith("projector."))
    assert held / MILLION == pytest.approx(projector, abs=0.01)
    assert sum(tensor.numel() for tensor in theirs.values()) / MILLION == pytest.approx(total, abs=10)


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("files", [1, 3])
@torch.no_grad()
def test_a_phi_checkpoint_computes_what_its_parts_do(
    tmp_path: Path, weights: dict[str, Tensor], files: int, bin: bool
) -> None:
    """Fused projections, copies of the table left out; past 32 positions the other rotary frequencies are in force."""
    save(tmp_path, PHI, {name: value for name, value in weights.items() if name not in TABLE_COPIES}, files, bin)
    model = imported(tmp_path)
    fields = {name: value for name, value in PHI.items() if not name.startswith("mm_")} | {"model_type": "phi3"}
    phi = Phi3ForCausalLM(AutoConfig.for_model(**fields)).eval()
    phi.load_state_dict({name: value for name, value in weights.items() if name in phi.state_dict()})
    for length in (8, 40):
        ids = torch.arange(length)[None] % 30 + 3
        torch.testing.assert_close(model(ids).logits, phi(ids).logits)
    table = weights[f"{INSIDE}language_model.model.shared.weight"]
    assert torch.equal(model.encoder.text_encoder.embed_tokens.weight, table)
    projection = weights[f"{INSIDE}image_projection"]
    assert torch.equal(model.encoder.image_projector.image_projection.weight, projection.T)


def test_any_copy_of_the_table_will_do(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    kept = f"{INSIDE}language_model.model.encoder.embed_tokens.weight"
    gone = {*TABLE_COPIES, f"{INSIDE}language_model.model.shared.weight"} - {kept}
    save(tmp_path, PHI, {name: value for name, value in weights.items() if name not in gone})
    assert torch.equal(imported(tmp_path).encoder.text_encoder.embed_tokens.weight, weights[kept])


@pytest.mark.parametrize("place", ["vision_tower", "elsewhere"])
def test_a_tower_in_its_own_folder(tmp_path: Path, weights: dict[str, Tensor], place: str) -> None:
    """Its keys have no prefix there; `vision_tower` in the checkpoint is found without a word."""
    folder = tmp_path / place
    shutil.copytree(original.TOWER, folder)
    save_weights(folder, {k.removeprefix(INSIDE): v for k, v in weights.items() if k.startswith(INSIDE)}, bin=True)
    save(tmp_path, PHI, {name: value for name, value in weights.items() if not name.startswith(INSIDE)})
    tower = imported(tmp_path, vision_tower=folder if place == "elsewhere" else None).encoder.vision_tower
    assert torch.equal(tower.convs[0].conv.weight, weights[f"{INSIDE}vision_tower.convs.0.proj.weight"])


def test_images_have_768_pixels_a_side_unless_the_tower_says_otherwise(tmp_path: Path) -> None:
    assert read_image_size(original.TOWER) == 128
    assert read_image_size(tmp_path) == 768


def test_the_decoder_is_kept_on_request(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save(tmp_path, PHI, weights)
    decoder = imported(tmp_path, decoder="keep").encoder.decoder
    assert decoder is not None
    name = "layers.1.encoder_attn.q_proj.weight"
    assert torch.equal(decoder.state_dict()[name], weights[f"{INSIDE}language_model.model.decoder.{name}"])


def test_a_tied_head_is_not_read(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    tied = {**PHI, "tie_word_embeddings": True}
    save(tmp_path, tied, {name: value for name, value in weights.items() if name != "lm_head.weight"})
    model = imported(tmp_path).language_model.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("file_bytes", [1, 100_000])
def test_files_are_bounded_and_read_back(tmp_path: Path, weights: dict[str, Tensor], file_bytes: int) -> None:
    """A limit below every tensor makes a file for each; safetensors' own reader reads them."""
    save(tmp_path, PHI, weights)
    whole = imported(tmp_path)
    import_florence_vl(tmp_path, tmp_path / "parts", original.TOWER, file_bytes=file_bytes)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    largest = max(tensor.nbytes for tensor in whole.state_dict().values())
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            sizes = [tensors.get_tensor(name).nbytes for name in tensors.keys()]  # noqa: SIM118
        assert len(sizes) == 1 or sum(sizes) <= file_bytes < largest
    parts = load_model(tmp_path / "parts").model.state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.state_dict().items())


def test_choices_and_placeholder_are_in_the_folder(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """The placeholder lies just beyond the table, which is not grown for it."""
    save(tmp_path, PHI, weights)
    model = imported(tmp_path, pooled_token="drop", prompt_pads="mask")
    built = load_model(tmp_path / "out")
    assert (model.config.encoder["pooled_token"], model.config.encoder["prompt_pads"]) == ("drop", "mask")
    assert model.image_spec.tokens_per_image == 16
    assert built.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == model.config.image_token_id == PHI["vocab_size"]
    assert model.get_input_embeddings().weight.shape[0] == PHI["vocab_size"]


MEASURED = """
import sys
from pathlib import Path
from fvl_lightning.cli.models.import_checkpoint import florence_vl
import fvl_lightning.modeling.conversion.florence_vl  # the command imports it with its libraries
def peak():  # not ru_maxrss, which begins at the peak of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
before = peak()
florence_vl(Path(sys.argv[1]), Path(sys.argv[1]) / "out", vision_tower=Path(sys.argv[2]))
sys.stderr.write(f"\\n{peak() - before}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
def test_a_checkpoint_is_never_held_twice(tmp_path: Path, bin: bool) -> None:
    """On top of what Python and its libraries take: pages of the mapped files, and a tensor at a time."""
    config = {**PHI, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 17, "rope_scaling": None}
    values = random_weights(config)
    save(tmp_path, config, values, files=2, bin=bin)
    size = sum(value.nbytes for value in values.values())
    assert size > 1000 * MILLION
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path, original.TOWER], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Values that are written have been read: a measure that sees less than one tensor would see nothing.
    assert 4 * MILLION < int(done.stderr.split()[-1]) < 1.3 * size


def test_the_end_tokens_of_its_generation_config_are_kept(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Those that are special tokens of its tokenizer; of how to sample, nothing."""
    save(tmp_path, PHI, weights)
    listed = {"eos_token_id": [0, 9], "temperature": 0.5, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(listed), encoding="utf-8")
    model = imported(tmp_path)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert written["eos_token_id"] == model.generation_config.eos_token_id == [2, 0]
    assert "temperature" not in written
