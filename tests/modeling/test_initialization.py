"""Initial values depend on the seed and the name of a module, and on nothing else."""

import pytest
import torch
from torch import nn

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.build import EncoderModel
from fvl_lightning.modeling.initialization import derived_seed, initialize, seed_streams
from tests.tiny_models import LLAMA, Holder, encoder_config, named_tensors, snapshot, tiny_encoder, tiny_model


def module_shapes(model: nn.Module) -> dict[str, list[torch.Size]]:
    """The shapes of what each module holds itself; modules that hold something."""
    shapes = {
        name: [tensor.shape for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        for name, module in model.named_modules()
    }
    return {name: own for name, own in shapes.items() if own}


def test_the_stream_is_that_of_manual_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        seed_streams(derived_seed(3, "a"))
        ours = torch.randn(5)
        torch.manual_seed(derived_seed(3, "a"))
        assert torch.equal(ours, torch.randn(5))


@pytest.mark.parametrize("fusion", [name for name in registry.names("fusion") if name != "concat"])
def test_parts_that_two_models_share_start_equal(fusion: str) -> None:
    """A module of the same name and shapes; its inner layers too where the projector's first one differs."""
    deep = LLAMA | {"num_hidden_layers": 4}
    one, other = (tiny_model(fusion=name, normalize=True, llama=deep) for name in ("concat", fusion))
    ours, theirs = module_shapes(one), module_shapes(other)
    shared = [name for name in ours if theirs.get(name) == ours[name]]
    children = {name.split(".")[0] for name in shared}
    assert {"encoder", "alignment", "projector", "language_model"} <= children
    assert {name for name in ours if name.startswith(("encoder.", "language_model."))} <= set(shared)
    for name in shared:
        pairs = zip(named_tensors(one.get_submodule(name)), named_tensors(other.get_submodule(name)), strict=True)
        assert all(torch.equal(left, right) for (_, left), (_, right) in pairs), name


def test_an_encoder_alone_starts_as_in_the_whole_model() -> None:
    alone = EncoderModel(tiny_encoder(seed=5))
    initialize(alone, seed=0)
    whole = dict(named_tensors(tiny_model(seed=0)))
    for name, tensor in named_tensors(alone):
        assert torch.equal(tensor, whole[name]), name


def test_sources_do_not_shift_the_rest() -> None:
    one = snapshot(tiny_model(sources=["davit", "ocr"]))
    other = snapshot(tiny_model(sources=["davit", "caption", "ocr", "grounding"]))
    shared = [name for name in one if name.startswith(("encoder.", "language_model."))]
    assert all(torch.equal(one[name], other[name]) for name in shared)


def test_another_seed_moves_every_matrix() -> None:
    one, other = snapshot(tiny_model(seed=0, fusion="gated")), snapshot(tiny_model(seed=1, fusion="gated"))
    matrices = [name for name, tensor in one.items() if tensor.ndim > 1 and "pos_idx_to_embed" not in name]
    assert matrices
    assert not [name for name in matrices if torch.equal(one[name], other[name])]


def test_equal_parts_of_other_names_start_unlike() -> None:
    holder = nn.Module()
    holder.one, holder.other = nn.Linear(4, 4), nn.Linear(4, 4)
    initialize(holder, seed=0)
    assert not torch.equal(holder.one.weight, holder.other.weight)


def test_no_random_number_is_taken_from_outside() -> None:
    holder = Holder("fusion", nn.Linear(3, 3))
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    initialize(holder, seed=0)
    assert torch.equal(torch.rand(3), wanted)


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    """Written down once; a change of them would change every initial weight."""
    assert derived_seed(0, "encoder") == 7_719_272_525_952_597_593
    assert derived_seed(0, "encoder") != derived_seed(1, "encoder")
    assert derived_seed(0, "ab", "c") != derived_seed(0, "a", "bc")
    assert all(0 <= derived_seed(seed, "x") < 2**63 for seed in range(50))


class Homeless(nn.Module):
    """A parameter that nobody initialises."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(2))


def test_a_parameter_without_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Homeless has parameters of its own \(raw\) and no reset_parameters\(\)"):
        initialize(Holder("fusion", Homeless()), seed=0)


def test_the_decoder_does_not_shift_the_features() -> None:
    """encoder_pretrain keeps the decoder, the language stages drop it; what they share starts equal."""
    kept, dropped = tiny_encoder(decoder="keep"), tiny_encoder()
    assert encoder_config().decoder == "drop"
    for name, tensor in named_tensors(dropped):
        assert torch.equal(tensor, dict(named_tensors(kept))[name]), name
