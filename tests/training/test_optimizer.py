"""Muon and AdamW in one optimiser, and the learning-rate schedule."""

import copy
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS, OptimizerConfig
from fvl_lightning.training.components import component_of, freeze
from fvl_lightning.training.distributed.local_updates import LocalAdamW
from fvl_lightning.training.distributed.owners import Owners
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.lr_schedule import warmup_cosine
from fvl_lightning.training.muon import MuonAdamW, orthogonalize
from fvl_lightning.training.optimizer import build_optimizer
from tests.thread_ranks import ThreadRanks, on_ranks
from tests.tiny_models import LLAMA, rows, snapshot, tiny_model

BFLOAT16 = 0.03
"""torch.optim.Muon iterates in bfloat16 (8 bits), ours in the parameter's dtype: relative to the size of an update."""
MATRICES = {"tall": (24, 8), "wide": (8, 20), "square": (12, 12), "tall too": (24, 8)}


def matrices(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in MATRICES.items()}


def set_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


# Muon.


@pytest.mark.parametrize("shape", [(3, 24, 8), (1, 8, 24), (2, 16, 16), (1, 1, 5)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalize(x))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    """For x = U S V^T the result is U f(S) V^T: in x's own bases it is diagonal and positive."""
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    core = u.mT @ orthogonalize(x[None])[0] @ v.mT
    torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=1e-10, rtol=0)
    assert float(core.diagonal().min()) > 0.6


def test_a_stack_is_orthogonalised_one_by_one() -> None:
    x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = torch.stack([orthogonalize(matrix[None])[0] for matrix in x])
    torch.testing.assert_close(orthogonalize(x), alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("ranks", "count", "rows"), [(2, 3, 6), (3, 2, 7), (4, 5, 5)])
def test_ranks_share_matrices_by_whole_ones(
    ranks: int, count: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks with fewer rows than others, or none, and with fewer matrices, or none."""

    def exchange(output: Tensor, values: Tensor, received: list[int], sent: list[int], group: Ranks) -> None:
        assert isinstance(group, ThreadRanks)
        every = group.exchange.all(group.rank, values.split(sent))
        output.copy_(torch.cat([parts[group.rank] for parts in every]))
        assert [len(parts[group.rank]) for parts in every] == received

    monkeypatch.setattr(torch.distributed, "all_to_all_single", exchange)
    matrices = torch.randn(count, rows, 3, generator=torch.Generator().manual_seed(0))

    def update(rank: Ranks) -> list[Tensor]:
        mesh = SimpleNamespace(
            ndim=1, size=lambda _: ranks, get_local_rank=lambda _: rank.rank, get_group=lambda _: rank
        )
        owners = Owners(SimpleNamespace(device_mesh=mesh, shape=matrices.shape[1:]))  # type: ignore[arg-type]
        chunks = [*matrices.chunk(ranks, dim=1), *[matrices[:, :0]] * ranks]
        whole = owners.gather(list(chunks[rank.rank]))
        assert torch.equal(whole, matrices[rank.rank :: ranks])
        return owners.scatter(whole + 1, count)

    found = on_ranks(ranks, update)
    for number, matrix in enumerate(matrices):
        assert torch.equal(torch.cat([parts[number] for parts in found]), matrix + 1)


def test_a_zero_gradient_moves_nothing() -> None:
    assert orthogonalize(torch.zeros(1, 4, 3)).count_nonzero() == 0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_torchs_muon(weight_decay: float) -> None:
    """Five steps; torch's own differs by the bfloat16 of its iteration alone."""
    ours, theirs = matrices(), matrices()
    start = {name: parameter.detach().clone() for name, parameter in ours.items()}
    how = {"lr": 0.02, "weight_decay": weight_decay}
    optimizer = MuonAdamW([{"params": list(ours.values()), "muon": True, **how}])
    reference = torch.optim.Muon(list(theirs.values()), adjust_lr_fn="match_rms_adamw", **how)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
        for name, parameter in ours.items():
            difference = float((parameter - theirs[name]).detach().norm())
            moved = float((theirs[name] - start[name]).detach().norm())
            assert difference < BFLOAT16 * moved, (name, step, difference / moved)


def test_matrices_of_one_shape_together_are_matrices_alone() -> None:
    """Two of the four share a shape and go through the iteration as one stack."""
    together, alone = matrices(), matrices()
    optimizer = MuonAdamW([{"params": list(together.values()), "muon": True}], lr=0.02)
    apart = [MuonAdamW([{"params": [parameter], "muon": True}], lr=0.02) for parameter in alone.values()]
    for step in range(3):
        set_gradients(together, step)
        set_gradients(alone, step)
        optimizer.step()
        for one in apart:
            one.step()
    for name, parameter in together.items():
        torch.testing.assert_close(parameter, alone[name], atol=1e-6, rtol=0)


def test_a_matrix_without_gradient_stays() -> None:
    parameters = matrices()
    before = parameters["tall"].detach().clone()
    optimizer = MuonAdamW([{"params": list(parameters.values()), "muon": True}], lr=0.02, weight_decay=0.1)
    set_gradients(parameters, 0)
    parameters["tall"].grad = None
    optimizer.step()
    assert torch.equal(parameters["tall"], before)
    assert not torch.equal(parameters["tall too"], matrices()["tall too"])


def test_groups_without_muon_are_torchs_adamw() -> None:
    """Bit for bit torch's fused kernels, beside groups with Muon."""
    ours, theirs, hidden = matrices(1), matrices(1), matrices(2)
    how = {"lr": 3e-3, "weight_decay": 0.1}
    optimizer = MuonAdamW(
        [{"params": list(hidden.values()), "muon": True, "lr": 0.02}, {"params": list(ours.values()), **how}],
        betas=(0.9, 0.95),
    )
    reference = torch.optim.AdamW(list(theirs.values()), betas=(0.9, 0.95), fused=True, **how)
    for step in range(4):
        for parameters in (ours, theirs, hidden):
            set_gradients(parameters, step)
        optimizer.step()
        reference.step()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


def test_a_state_of_torchs_loop_goes_on_in_fused_kernels() -> None:
    """Two steps of each kind, with the same values to rounding, and the state of one continued by the other."""
    ours, theirs = matrices(), matrices()
    loop = torch.optim.AdamW(list(theirs.values()), lr=1e-2)
    fused = LocalAdamW([{"params": list(ours.values())}], lr=1e-2)
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        if step == 2:
            fused.load_state_dict(copy.deepcopy(loop.state_dict()))
        loop.step()
        fused.step()
        assert [group["fused"] for group in fused.param_groups] == [True]
        for name, parameter in ours.items():
            torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-7)


def test_shapes_alone_have_no_kernels() -> None:
    weight = nn.Parameter(torch.empty(2, 2, device="meta"))
    assert [group["fused"] for group in LocalAdamW([{"params": [weight]}]).param_groups] == [False]


def test_a_closure_is_evaluated_once_with_gradients() -> None:
    weight = nn.Parameter(torch.eye(3))
    optimizer = MuonAdamW([{"params": [weight], "muon": True}], lr=0.1)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 3
    assert calls == [True]
    assert not torch.equal(weight.detach(), torch.eye(3))


def muon_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = tiny_model(fusion="gated", decoder="keep", normalize=True)
    return model, build_optimizer(model, OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1))


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = rows(2, seed=step)
        optimizer.zero_grad()
        model(batch.token_ids, pixel_values=batch.images, labels=batch.labels).loss.backward()
        optimizer.step()


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    """Four steps, or two, a state_dict through a file's types, and two."""
    whole, whole_optimizer = muon_model()
    train(whole, whole_optimizer, range(4))
    first, first_optimizer = muon_model()
    train(first, first_optimizer, range(2))
    second, second_optimizer = muon_model()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
    train(second, second_optimizer, range(2, 4))
    wanted = snapshot(whole)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in snapshot(second).items())


# Groups.


def groups_of(model: nn.Module, config: OptimizerConfig) -> dict[str, dict[str, Any]]:
    groups = build_optimizer(model, config).param_groups
    assert len({group["name"] for group in groups}) == len(groups)
    return {group["name"]: group for group in groups}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [(), ("encoder",), ("encoder", "language_model")])
def test_every_trainable_parameter_is_in_one_group(name: str, tied: bool, frozen: tuple[str, ...]) -> None:
    model = tiny_model(fusion="attention", normalize=True, llama={**LLAMA, "tie_word_embeddings": tied})
    freeze(model, {component: "frozen" if component in frozen else "full" for component in COMPONENTS})
    groups = groups_of(model, OptimizerConfig(name=name))
    held = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(held) == sorted(trainable)
    assert {group.split("/")[0] for group in groups} == set(COMPONENTS) - set(frozen)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for title, group in groups.items():
        assert {component_of(names[id(parameter)]) for parameter in group["params"]} == {title.split("/")[0]}


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_hidden_matrices_alone(tied: bool) -> None:
    model = tiny_model(fusion="attention", decoder="keep", normalize=True, llama={**LLAMA, "tie_word_embeddings": tied})
    groups = groups_of(model, OptimizerConfig(name="muon"))
    muon = {id(parameter) for group in groups.values() if group["muon"] for parameter in group["params"]}
    never = (nn.Embedding, nn.LayerNorm, nn.Conv2d)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, never) or name.endswith("lm_head") or parameter.ndim < 2:
                assert id(parameter) not in muon, name
            elif isinstance(module, nn.Linear):
                assert id(parameter) in muon, name
    assert {title.split("/")[1] for title in groups} == {"muon", "matrices", "vectors"}


def test_rates_are_per_component_and_decay_is_for_matrices() -> None:
    model = tiny_model(fusion="gated")
    config = OptimizerConfig(
        name="muon", learning_rate=0.1, learning_rates={"encoder": 0.01, "fusion": 0.3}, weight_decay=0.2
    )
    groups = groups_of(model, config)
    rates = {"encoder": 0.01, "fusion": 0.3, "projector": 0.1, "language_model": 0.1}
    for title, group in groups.items():
        component, kind = title.split("/")
        assert group["lr"] == rates[component]
        assert group["weight_decay"] == (0.0 if kind == "vectors" else 0.2)
        assert {parameter.ndim > 1 for parameter in group["params"]} == {kind != "vectors"}


def test_adamw_has_no_muon_group() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerConfig(betas=(0.8, 0.9)))
    assert type(optimizer) is LocalAdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    assert not any(group["muon"] for group in optimizer.param_groups)


def test_a_rate_for_no_component() -> None:
    with pytest.raises(ConfigError, match=r"learning_rates: unknown component 'fuson'.*did you mean 'fusion'"):
        build_optimizer(tiny_model(), OptimizerConfig(learning_rates={"fuson": 1.0}))


# The schedule.


def factors(steps: int, **config: Any) -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 2.0}])
    schedule = warmup_cosine(optimizer, OptimizerConfig(**config), steps)
    found = []
    for _ in range(steps + 3):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_is_linear_and_the_cosine_ends_at_its_fraction() -> None:
    """The first step moves already, the last of the warm-up is at the peak, and past the end nothing rises again."""
    found = factors(20, warmup_steps=4, final_fraction=0.1)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4] == pytest.approx(1.0)
    assert found[12] == pytest.approx(0.1 + 0.9 / 2), "half of the way: half of the height"
    assert found[16] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.75)) / 2)
    assert found[20:] == pytest.approx([0.1] * 3)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(found[4:]))


def test_without_warm_up_it_starts_at_the_peak() -> None:
    found = factors(10)
    assert found[0] == 1.0
    assert found[10] == pytest.approx(0.0, abs=1e-12)


def test_a_warm_up_longer_than_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert factors(3, warmup_steps=6)[:3] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert "rises for 6 steps and trainer.max_steps is 3, it ends at 0.5 of its peak" in caplog.text
