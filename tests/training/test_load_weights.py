"""Components loaded from one run's model into another's, and the hash of weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.modeling.build import EncoderModel
from fvl_lightning.training.load_weights import load_components
from tests.tiny_models import named_tensors, snapshot, tiny_encoder, tiny_model


def save(model: nn.Module, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def test_an_encoder_alone_goes_into_a_whole_model(tmp_path: Path) -> None:
    """The encoder takes every value, its decoder stays in the file, and nothing else moves."""
    pretrained = EncoderModel(tiny_encoder(seed=7, decoder="keep"))
    model = tiny_model(seed=0, fusion="gated")
    before = snapshot(model)
    assert load_components(model, save(pretrained, tmp_path)) == ["encoder"]
    theirs = dict(named_tensors(pretrained))
    changed = 0
    for name, tensor in named_tensors(model):
        if name.startswith("encoder."):
            assert torch.equal(tensor, theirs[name]), name
            changed += not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name]), name
    assert changed > 20


def test_a_whole_model_goes_into_another(tmp_path: Path) -> None:
    """As transformers saves it: in several files, tied weights once."""
    pretrained, model = tiny_model(seed=7, fusion="gated", normalize=True), tiny_model(fusion="gated", normalize=True)
    pretrained.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_components(model, tmp_path) == ["encoder", "fusion", "language_model", "projector"]
    wanted = snapshot(pretrained)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in named_tensors(model))
    language_model = model.language_model.model
    assert language_model.lm_head.weight is language_model.model.embed_tokens.weight


def test_an_encoder_that_kept_its_decoder_takes_it_back(tmp_path: Path) -> None:
    save(EncoderModel(tiny_encoder(seed=7, decoder="keep")), tmp_path)
    again = EncoderModel(tiny_encoder(seed=0, decoder="keep"))
    assert load_components(again, tmp_path) == ["encoder"]
    assert weights_hash(again.state_dict()) == weights_hash(EncoderModel(tiny_encoder(7, decoder="keep")).state_dict())
    decoders = [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("encoder.decoder.")]
    assert decoders
    with pytest.raises(ConfigError, match=r"encoder\.decoder\.\S+ missing"):
        load_components(again, save(EncoderModel(tiny_encoder(seed=7)), tmp_path / "dropped"))


def test_another_fusion_is_refused_and_nothing_moves(tmp_path: Path) -> None:
    tiny_model(seed=7, fusion="gated").save_pretrained(tmp_path)
    model = tiny_model(seed=0, fusion="attention")
    before = snapshot(model)
    says = r"^init_from: \S+ holds another model: \S+ missing; .* and \d+ more; start from a run of the same .*$"
    with pytest.raises(ConfigError, match=says) as caught:
        load_components(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model))


def test_other_sizes_are_named(tmp_path: Path) -> None:
    save(EncoderModel(tiny_encoder()), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = "encoder.text_encoder.layers.0.fc1.weight"
    save_file(stored | {name: torch.zeros(3, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"holds another model: {name} \(3, 16\) for \(24, 16\); start"):
        load_components(tiny_model(), tmp_path)


def test_values_that_mean_nothing_are_named_and_nothing_moves(tmp_path: Path) -> None:
    save(EncoderModel(tiny_encoder(seed=7)), tmp_path)
    stored, model = load_file(tmp_path / "model.safetensors"), tiny_model()
    before = snapshot(model)
    name = "encoder.text_encoder.layers.0.fc1.weight"
    for value, says in (
        (stored[name].char(), rf"has values of other number types than .* \({name} torch.int8\)"),
        (stored[name] * torch.nan, rf"holds NaN or infinite numbers, in {name}; "),
    ):
        save_file(stored | {name: value}, tmp_path / "model.safetensors")
        with pytest.raises(DataError, match=f"^init_from: {tmp_path} {says}"):
            load_components(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model))


def test_a_whole_model_s_folder_that_lacks_a_component_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model(seed=7).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert load_components(tiny_model(), tmp_path)
    assert not caplog.messages
    left = {name: value for name, value in stored.items() if not name.startswith("projector.")}
    save_file(left, tmp_path / "model.safetensors", {"format": "pt"})
    assert "projector" not in load_components(tiny_model(), tmp_path)
    (warning,) = caplog.messages
    without = "is a whole model without weights of projector, which keeps its initial weights"
    assert warning == f"init_from: {tmp_path} {without}"


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no weights, expected"):
        load_components(tiny_model(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{half of a header")
    with pytest.raises(DataError, match=r"model\.safetensors is not a readable safetensors file") as caught:
        load_components(tiny_model(), tmp_path)
    assert "\n" not in str(caught.value)
    save_file({"vision_tower.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"parameters of another kind of model, such as vision_tower\.weight"):
        load_components(tiny_model(), tmp_path)


# The name of a set of weights.


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 2, generator=generator),
        "b": torch.randn(4, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(5),
        "scale": torch.tensor(1.0, dtype=torch.bfloat16),
    }


def test_a_hash_is_of_names_and_bits() -> None:
    weights = tensors()
    name = weights_hash(weights)
    assert len(name) == 12
    assert weights_hash(dict(reversed(weights.items()))) == name
    assert weights_hash({key: value.clone() for key, value in weights.items()}) == name
    assert weights_hash(weights | {"a": weights["a"].T.contiguous().T}) == name, "layout in memory is no difference"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64])
def test_a_hash_is_of_values_whatever_type_holds_them(dtype: torch.dtype) -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    held = {"a": values.to(torch.float8_e4m3fn).to(dtype), "zero": torch.tensor(-0.0).to(dtype)}
    name = weights_hash(held)
    assert weights_hash({key: value.float() for key, value in held.items()}) == name
    assert weights_hash({key: value.double() for key, value in held.items()}) == name
    assert weights_hash(held | {"zero": torch.tensor(0.0).to(dtype)}) != name


def test_rounding_changes_the_hash() -> None:
    values = {"a": torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    assert len({weights_hash({"a": values["a"].to(dtype)}) for dtype in types}) == 4


def test_one_bit_changes_the_hash() -> None:
    weights = tensors()
    hashes = {weights_hash(weights)}
    for key in ("a", "b"):
        changed = weights[key].clone()
        changed.view(torch.uint8).flatten()[0] ^= 1
        hashes.add(weights_hash(weights | {key: changed}))
    hashes.add(weights_hash(weights | {"count": torch.tensor(6)}))
    hashes.add(weights_hash(weights | {"scale": torch.tensor(-1.0, dtype=torch.bfloat16)}))
    hashes.add(weights_hash(weights | {"a": weights["a"].view(2, 3)}))
    hashes.add(weights_hash(weights | {"a": weights["a"].view(torch.int32)}))
    hashes.add(weights_hash({("c" if key == "a" else key): value for key, value in weights.items()}))
    hashes.add(weights_hash({key: value for key, value in weights.items() if key != "b"}))
    assert len(hashes) == 9


def test_the_decoder_does_not_name_an_encoder() -> None:
    """What encoder_pretrain ends with is what the language stages, which drop the decoder, start from."""
    kept, dropped = tiny_encoder(decoder="keep"), tiny_encoder()
    assert weights_hash(kept.feature_state()) == weights_hash(dropped.feature_state())
    assert weights_hash(tiny_encoder(seed=1).feature_state()) != weights_hash(dropped.feature_state())
