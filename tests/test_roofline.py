"""benchmarks/roofline: operations, bytes and times of small cases by hand, and the saved numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.roofline import pages
from benchmarks.roofline.__main__ import OUTPUT, chosen, main, tiny
from benchmarks.roofline.cases import CASES, CHANGES, EXPERIMENTS
from benchmarks.roofline.device import Ceilings, ceilings, seconds, total
from benchmarks.roofline.fuse import fused
from benchmarks.roofline.operations import Operation, Recorder
from benchmarks.roofline.step import update
from benchmarks.roofline.trace import OTHER_BLOCKS, Way, build, trace, with_layers
from fvl_lightning import load_experiment
from tests.conftest import ROOT

ROUND = Ceilings("round", 1e3, 1.0, 1e3, 100.0, 10.0, 400.0, 200.0, 100.0, 50.0, 2.0, 1.0, 1.0)


def recorded(run: object, owner: str = "block") -> list[Operation]:
    with Recorder() as recorder:
        recorder.owner = owner
        kept = run()  # type: ignore[operator]
    del kept
    return recorder.operations


def test_a_linear_layer_by_hand() -> None:
    """4 rows of 8 numbers become 16: 2 * 4 * 8 * 16 operations, and as many for each of the two gradients."""
    layer, rows = nn.Linear(8, 16, bias=False), torch.ones(4, 8, requires_grad=True)
    found = recorded(lambda: layer(rows).backward(torch.ones(4, 16)))
    products = [operation for operation in found if operation.kind == "matmul"]
    assert [operation.flops for operation in products] == [1024, 1024, 1024]
    assert {operation.bytes for operation in products} == {4 * (4 * 8 + 8 * 16 + 4 * 16)}
    assert not products[0].narrow
    assert seconds(products[0], ROUND) == max(1024 / 100, 896 / 10)
    assert seconds(products[0], replace(ROUND, bandwidth=1e3)) == 1024 / 100
    assert seconds(replace(products[0], narrow=True), replace(ROUND, bandwidth=1e3)) == 1024 / 1e3
    assert total([replace(products[0], times=3)], ROUND) == pytest.approx(3 * 89.6)


def test_casts_read_and_write_and_views_are_free() -> None:
    values = torch.ones(10, 6)
    (cast,) = recorded(lambda: values.view(6, 10).t().bfloat16())
    assert (cast.bytes, cast.narrow) == (60 * 4 + 60 * 2, False)
    (expanded,) = recorded(lambda: torch.ones(1).expand(100) * values.flatten()[:1])[-1:]
    assert expanded.bytes == 4 + 4 + 400, "an expanded dimension is read once"


def test_a_table_is_read_where_it_is_looked_up() -> None:
    table = nn.Embedding(1000, 8)
    (found,) = recorded(lambda: table(torch.tensor([1, 2, 3])))
    assert (found.kind, sum(found.writes.values())) == ("gather", 3 * 8 * 4)
    assert found.bytes < 4 * 3 * 8 * 4


def test_causal_attention_has_half_of_its_products() -> None:
    inputs = [torch.ones(1, 2, 16, 4, requires_grad=True) for _ in range(3)]

    def attend(mask: Tensor | None) -> None:
        attention = torch.nn.functional.scaled_dot_product_attention
        attention(*inputs, attn_mask=mask, is_causal=mask is None).sum().backward()

    products = 2 * 2 * 16 * 16 * 4  # of heads, rows, columns and width, two operations each
    causal = [operation for operation in recorded(lambda: attend(None)) if operation.kind == "attention"]
    assert [operation.flops for operation in causal] == [2 * products // 2, 5 * products // 2]
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    masked = [operation for operation in recorded(lambda: attend(mask)) if operation.kind == "masked attention"]
    assert [operation.flops for operation in masked] == [2 * products, 5 * products]
    fast = replace(ROUND, bandwidth=1e9)
    assert [seconds(one, fast) for one in causal] == [products / 400, 2.5 * products / 200]
    assert seconds(causal[0], fast, cudnn=True) == products / 800
    assert [seconds(one, fast) for one in masked] == [2 * products / 100, 5 * products / 50]


def test_fused_operations_keep_what_is_between_them() -> None:
    values = torch.ones(10)
    apart = recorded(lambda: (values * 2).relu() + values)
    assert [operation.bytes for operation in apart] == [80, 80, 120]
    (one,) = fused(apart, "block")
    assert one.bytes == 80, "values are read once, and the sum is written"
    assert fused(apart, "another") == apart
    row, weight = torch.ones(1, 10), torch.ones(10, 10)
    pieces = fused(recorded(lambda: (row * 2).relu() @ weight), "block")
    assert [operation.bytes for operation in pieces] == [80, 4 * (10 + 100 + 10)], "a matrix product ends a run"


def test_an_update_by_hand() -> None:
    """Scaling and clipping move 20 bytes a parameter, torch's AdamW 72, and the fused one 28."""
    loop, one = (sum(operation.bytes for operation in update(1000, how)) for how in (False, True))
    assert loop == pytest.approx(1000 * (20 + 72), abs=100)
    assert one == pytest.approx(1000 * (20 + 28), abs=100)


def test_the_h200_is_as_docs_say() -> None:
    device = ceilings("h200")
    assert (device.peak, device.matmul, device.bandwidth) == pytest.approx((989e12, 670e12, 3.87e12))
    assert (device.attention, device.masked_backward) == pytest.approx((380e12, 110e12))
    assert device.link == pytest.approx(350e9)


def test_cases_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen([]) == list(CASES)
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert (EXPERIMENTS / f"{case.preset}.yaml").is_file()
    with pytest.raises(SystemExit, match="2"):
        main(["--cases", "florence_vl/3b/finetun"])
    assert "unknown case 'florence_vl/3b/finetun', expected some of" in capsys.readouterr().err


def test_the_saved_numbers_are_of_these_cases_and_changes() -> None:
    saved = json.loads(OUTPUT.read_text(encoding="utf-8"))
    assert saved["about"].startswith("Arithmetic")
    assert [case["case"] for case in saved["cases"]] == [case.name for case in CASES]
    assert saved["changes"] == {change.switch: change.title for change in CHANGES}
    for case in saved["cases"]:
        shares = sum(change["share"] for change in case["changes"])
        assert case["after"]["step_seconds"] == pytest.approx(case["before"]["step_seconds"] * (1 - shares))
        assert case["before"]["mfu"] is None or 0 < case["before"]["mfu"] < case["after"]["mfu"] < 0.7


def test_the_tables_of_the_pages_have_the_saved_numbers() -> None:
    saved = json.loads(OUTPUT.read_text(encoding="utf-8"))
    for page, lines in (
        ("docs/scale.md", pages.switches(saved)),
        ("benchmarks/roofline/README.md", pages.presets(saved)),
        ("benchmarks/roofline/README.md", pages.limits(saved)),
    ):
        assert "\n".join(lines) in (ROOT / page).read_text(encoding="utf-8"), page


# The kit's own steps, on shapes.


@pytest.mark.slow
def test_a_block_stands_for_those_like_it(tmp_path: Path) -> None:
    preset = EXPERIMENTS / "florence_vl" / "3b" / "finetune.yaml"
    experiment = load_experiment(preset, *tiny(tmp_path), "trainer.checkpoint_activations=[encoder,language_model]")
    four, two = with_layers(experiment, 4), with_layers(experiment, 2)
    for way in (
        Way(),
        Way(bfloat16_parameters=True, kept="all", head_twice=False),
        Way(masked=True),
        Way(kept="products"),
    ):
        whole = trace(four, build(four), 2, way, 4)
        short = trace(two, build(two), 2, way, 4)
        assert {operation.times for operation in whole} == {1}
        assert {operation.times for operation in short if operation.owner == OTHER_BLOCKS} == {3}
        for quantity in ("flops", "bytes"):
            sums = [sum(one.times * getattr(one, quantity) for one in operations) for operations in (whole, short)]
            assert sums[1] == pytest.approx(sums[0], rel=1e-6), (way, quantity)
        assert sum(one.times for one in short) == len(whole)


@pytest.mark.slow
def test_every_preset_is_predicted_at_a_thousandth_of_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["--tiny", "--output", str(tmp_path / "roofline.json")]) == 0
    saved = json.loads((tmp_path / "roofline.json").read_text(encoding="utf-8"))
    assert [case["case"] for case in saved["cases"]] == [case.name for case in CASES]
    for case in saved["cases"]:
        assert 0 < case["after"]["step_seconds"] < case["before"]["step_seconds"]
    assert "Nothing here was measured on a GPU" in capsys.readouterr().out
