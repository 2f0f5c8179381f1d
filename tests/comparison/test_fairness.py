"""Arms of a comparison train on the same samples at every step, whatever they make of an image."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvl_lightning.comparison import worker as cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.fairness import check_same_encoder, check_same_samples, check_same_start
from fvl_lightning.comparison.matching.sizes import match_sizes
from fvl_lightning.comparison.matching.tokens import match_tokens, numbers_in_words
from fvl_lightning.comparison.plan import arm_differences, experiments, plan_alike
from fvl_lightning.comparison.result_files.cell import CellResult, CellSpec
from fvl_lightning.comparison.split_readings import read_test_access
from fvl_lightning.core.config.loading import as_plain, load_config
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.profiling.flops import training_flops
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.training.components import count_parameters
from tests.conftest import ROOT, TINY_DATA
from tests.tiny_models import experiment


def run_with_keys(folder: Path, keys: dict[int, float]) -> RunFolder:
    """A run folder whose journal has these digests of steps."""
    folder.mkdir()
    lines = [json.dumps({"step": step, "data/step_keys": value}) + "\n" for step, value in keys.items()]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return RunFolder(folder)


def test_rows_are_planned_by_the_largest_arm(tmp_path: Path) -> None:
    arms = {
        fusion: [experiment(tmp_path, stage, view, fusion=fusion) for stage, view in STAGES.items()]
        for fusion in ("concat", "token_concat", "gated")
    }
    plan_alike([arms])
    assert {stage.data.config.planned_tokens_per_image for stages in arms.values() for stage in stages} == {16}


def test_arms_of_one_size_plan_for_themselves(tmp_path: Path) -> None:
    arms = {fusion: [experiment(tmp_path, "finetune", "conversation", fusion=fusion)] for fusion in ("concat", "mean")}
    plan_alike([arms])
    assert {stage.data.config.planned_tokens_per_image for (stage,) in arms.values()} == {None}


def test_all_arms_have_a_row_for_each_answer_if_one_reads_the_question(tmp_path: Path) -> None:
    arms = {fusion: [experiment(tmp_path, "finetune", "conversation", fusion=fusion)] for fusion in ("concat", "film")}
    plan_alike([arms])
    assert {stage.data.config.by_turn for (stage,) in arms.values()} == {True}
    alone = {"film": [experiment(tmp_path, "finetune", "conversation", fusion="film")]}
    plan_alike([alone])
    assert not alone["film"][0].data.config.by_turn, "its rows are such in any case"


def test_other_samples_at_a_step_are_found(tmp_path: Path) -> None:
    runs = {
        "one": run_with_keys(tmp_path / "a", {10: 5.0, 20: 2.0**52 - 1, 30: 7.0}),
        "two": run_with_keys(tmp_path / "b", {10: 5.0, 20: 2.0**52 - 1}),
    }
    check_same_samples("finetune", runs)
    runs["three"] = run_with_keys(tmp_path / "c", {10: 5.0, 20: 2.0**52 - 2})
    with pytest.raises(DataError, match="arms one and three trained on different samples at step 20 of finetune"):
        check_same_samples("finetune", runs)


STAGES = {"align": "caption", "finetune": "conversation"}


def comparison(tmp_path: Path, **values: Any) -> tuple[ComparisonConfig, Path]:
    """A comparison over the demo's own stages, written beside them as far as it can tell."""
    given = {"encoder_stage": "encoder_pretrain.yaml", "stages": ["pretrain.yaml", "finetune.yaml"]} | values
    file = ROOT / "experiments" / "demo" / "mine.yaml"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
    return load_config(ComparisonConfig, tmp_path / "mine.yaml"), file


def refused(tmp_path: Path, **values: Any) -> str:
    config, file = comparison(tmp_path, **values)
    with pytest.raises(ConfigError) as caught:
        plan_alike([experiments(config, file, tmp_path / "runs")[config.seeds[0]].arms], config.lineage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_arm_that_differs_in_more_than_is_compared_is_refused(workspace: Path, here: None) -> None:
    arms = {"concat": {"set": ["fusion=concat"]}, "gated": {"set": ["fusion=gated", "optimizer.learning_rate=0.1"]}}
    said = refused(workspace, arms=arms, swept=["fusion"])
    assert "gated differs from concat in optimizer.learning_rate too (0.1, not 0.00" in said
    assert "only fusion is compared; make it equal, or add it to `swept`" in said
    arms["adapted"] = {"set": ["fusion=concat", "lora.rank=2"]}
    config, file = comparison(workspace, arms=arms)
    plan = experiments(config, file, workspace / "runs")[0]
    found = arm_differences(plan.arms, "concat")
    assert found.pop("adapted")["lora.rank"] == [None, 2], "not the whole of lora at once"
    assert found == {
        "concat": {},
        "gated": {
            "fusion.gate": [None, "softmax"],
            "fusion.name": ["concat", "gated"],
            "fusion.repeat": [1, None],
            "optimizer.learning_rate": [0.003, 0.1],
        },
    }


def test_a_bad_axis_is_named_with_its_file(workspace: Path, here: None) -> None:
    said = refused(workspace, axes={"fusion.heads": [2, 4]})
    assert "heads" in said
    assert "axes in " in said
    assert "unknown key" in said


def test_the_lineage_is_what_is_declared(workspace: Path, here: None) -> None:
    arms = {"concat": {"set": ["fusion=concat", "trainable.encoder=full"]}}
    assert "concat trains it" in refused(workspace, arms=arms).replace("and concat", "concat")
    said = refused(workspace, axes={"fusion": ["concat"]}, lineage="end_to_end")
    assert "name the file first in `stages`, or choose lineage: frozen_encoder" in said
    said = refused(workspace, axes={"fusion": ["concat"]}, lineage="end_to_end", encoder_stage="")
    assert "no stage of concat trains its encoder" in said
    said = refused(workspace, axes={"fusion": ["concat"]}, lineage="frozen_per_arm")
    assert "frozen_per_arm means that every arm names one of its own" in said
    said = refused(workspace, arms=arms, lineage="frozen_per_arm", encoder_stage="")
    assert "encoders stay frozen, and concat trains it" in said


def test_every_arm_trains_its_own_encoder_end_to_end(workspace: Path, here: None) -> None:
    stages = ["encoder_pretrain.yaml", "finetune.yaml"]
    config, file = comparison(
        workspace, axes={"fusion": ["concat", "token_concat"]}, lineage="end_to_end", encoder_stage="", stages=stages
    )
    plan = experiments(config, file, workspace / "runs")[0]
    plan_alike([plan.arms], config.lineage)
    assert plan.encoder is None
    for first, last in plan.arms.values():
        assert (first.feature_cache, last.feature_cache) == (None, None), "nothing is shared"
        assert last.data is not None
        assert last.data.config.planned_tokens_per_image == 64


INITIAL: dict[str, Any] = {"projector.layers.0.weight": ([2, 3], "aa"), "projector.layers.0.bias": ([2], "bb")}


def result(encoder_hash: str = "aa", initial: dict[str, Any] | None = None) -> CellResult:
    """Measured numbers do not matter here."""
    score = KindScores(0, 0)
    numbers = dict.fromkeys(
        ("image_tokens", "inference_flops", "training_flops", "parameters", "trainable", "tokens_per_second",
         "peak_memory_bytes", "seconds"), 0.0,
    )  # fmt: skip
    return CellResult(
        scores={}, image_zeroed=score, image_shuffled=score, prior=score, cell="", encoder_hash=encoder_hash,
        initial=initial or {}, runs={}, answers=[], **numbers,
    )  # fmt: skip


def started(**changes: Any) -> dict[str, CellResult]:
    return {"concat": result(initial=INITIAL), "gated": result(initial=INITIAL | changes)}


def test_other_initial_weights_are_found() -> None:
    fusion = {"concat": {}, "gated": {"fusion.name": ["concat", "gated"]}}
    assert check_same_start(0, "concat", started(), fusion)["gated"] == 1
    with pytest.raises(DataError, match=r"gated of seed 0 started from other weights at projector\.layers\.0\.bias"):
        check_same_start(0, "concat", started(**{"projector.layers.0.bias": ([2], "cc")}), fusion)
    # A module of another size has other initial values throughout, and a component that is compared may have any.
    wider = {"projector.layers.0.weight": ([2, 4], "dd"), "projector.layers.0.bias": ([2], "cc")}
    assert check_same_start(0, "concat", started(**wider), fusion)["gated"] == 0
    check_same_start(0, "concat", started(**{"projector.layers.0.bias": ([2], "cc")}), {"concat": {}, "gated": {
        "projector.depth": [2, 3]
    }})  # fmt: skip


def test_another_encoder_is_found() -> None:
    with pytest.raises(DataError, match="arms of seed 4 do not share one encoder: gated has bb, not aa"):
        check_same_encoder(4, None, {"concat": result("aa"), "gated": result("bb")})


def test_a_cell_on_another_encoder_is_refused_before_it_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = RunFolder.create(tmp_path, "finetune", {"stage": {"name": "finetune"}})
    trained.record(encoder_hash="bb")
    monkeypatch.setattr(cell, "reuse_or_train", lambda *_, **__: trained)
    stage = as_plain(experiment(tmp_path, "finetune", "conversation"))
    spec = CellSpec(stages=[stage], encoder_hash="aa")
    with pytest.raises(ConfigError, match=r"finetune: its encoder is not the one all arms share \(bb, not aa\)"):
        cell.run_cell(spec, "cc", tmp_path)
    assert read_test_access(tmp_path, []).others == []


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the demo's files are relative to the working folder."""
    monkeypatch.chdir(workspace)


def sized(workspace: Path, match: str, arms: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """The arms of each seed, the first of them the baseline, once their sizes have been matched."""
    config, file = comparison(workspace, arms=arms, seeds=seeds, set=[*TINY_DATA, "trainer.batch_size=8"])
    plans = [plan.arms for plan in experiments(config, file, workspace / "runs").values()]
    match_sizes(plans, next(iter(arms)), match)
    return plans


def test_arms_of_one_size(workspace: Path, here: None) -> None:
    arms = {fusion: {"set": [f"fusion={fusion}"]} for fusion in ("concat", "mean", "gated", "attention")}
    arms["deep"] = {"set": ["fusion=mean", "projector.depth=3"]}
    arms["pooled"] = {"set": ["fusion=mean", "projector=pool", "projector.depth=3"]}
    plans = sized(workspace, "parameters", arms, [0, 1])
    sizes = {}
    for arm, stages in plans[1].items():
        assert {stage.projector.config.hidden for stage in stages} == {plans[0][arm][0].projector.config.hidden}
        counts = count_parameters(build_stage(stages[-1], "meta").model)
        sizes[arm] = counts["fusion"]["parameters"] + counts["projector"]["parameters"]
    assert plans[0]["concat"][-1].projector.config.hidden is None, "the baseline stays as it is"
    assert max(abs(size / sizes["concat"] - 1) for size in sizes.values()) < 0.01
    with pytest.raises(ConfigError, match=r"gated has .* as near as it comes to the baseline's"):
        sized(workspace, "parameters", {"mean": arms["mean"], "gated": arms["gated"]}, [0])


@pytest.mark.slow
def test_arms_of_one_price(workspace: Path, here: None) -> None:
    arms = {"concat": {"set": ["fusion=concat"]}, "deep": {"set": ["fusion=gated", "projector.depth=3"]}}
    arms["davit"] = {"set": ["fusion=concat", "encoder.sources=[davit]"]}  # its encoder reads under no prompt
    (plans,) = sized(workspace, "flops", arms, [0])
    prices = {arm: counted(stages[-1]) for arm, stages in plans.items()}
    assert plans["concat"][-1].projector.config.hidden is None, "the baseline stays as it is"
    assert plans["davit"][-1].projector.config.hidden > 128
    assert max(abs(price / prices["concat"] - 1) for price in prices.values()) < 0.01


def counted(experiment: ExperimentConfig) -> float:
    """Operations per training sample, as a report has them."""
    data, stage = prepare_data(experiment), build_stage(experiment)
    data.connect(data_context(stage.model, stage.tokenizer, experiment))
    batch = next(iter(data.train_dataloader()))
    return training_flops(stage, batch) / len(batch.keys)


def test_more_image_tokens_are_no_matter_of_the_projector(workspace: Path, here: None) -> None:
    arms = {fusion: {"set": [f"fusion={fusion}"]} for fusion in ("concat", "token_concat")}
    with pytest.raises(ConfigError) as caught:
        sized(workspace, "flops", arms, [0])
    said = str(caught.value)
    assert re.fullmatch(
        r"match: flops: token_concat takes [\d.]+ MFLOPs per training sample with a hidden width of 1, which is as "
        r"near as it comes to the baseline's [\d.]+, with [\d.]+ more outside the projector \(64 image tokens in the "
        r"language model, not 16\); take match: natural",
        said,
    ), said


def budget(workspace: Path, arms: dict[str, list[str]], **values: Any) -> list[dict[str, Any]]:
    """The arms of each seed, once every projector makes the same number of tokens."""
    given = {name: {"set": overrides} for name, overrides in arms.items()}
    config, file = comparison(workspace, arms=given, seeds=[0, 1], match="tokens", set=TINY_DATA, **values)
    plans = [plan.arms for plan in experiments(config, file, workspace / "runs").values()]
    match_tokens(plans, next(iter(arms)), config)
    return plans


BY_EACH_PROJECTOR = {
    "concat": ["projector=pixel_shuffle"],
    "pool": ["projector=pool", "fusion=gated"],
    "learned": ["projector=resampler"],
    "honeybee": ["projector=c_abstractor", "projector.hidden=16"],
    "sources": ["projector=per_source", "projector.projectors.default=pool", "fusion=token_concat"],
}


@pytest.mark.slow
def test_every_arm_has_the_declared_image_tokens(workspace: Path, here: None) -> None:
    plans = budget(workspace, BY_EACH_PROJECTOR, image_tokens=4, stages=["finetune.yaml"])
    built = plan_alike([plans[1]])
    assert {stage.model.image_spec.tokens_per_image for stages in built.values() for stage in stages} == {4}
    last = {arm: stages[-1].projector.config for arm, stages in plans[0].items()}
    assert (last["concat"].factor, last["pool"].factor, last["learned"].queries, last["honeybee"].rows) == (2, 2, 4, 2)
    assert last["sources"].projectors["ocr"].config.factor == 4, "a token of each of four sources"
    assert last["honeybee"].hidden == 16, "nothing else changes"
    assert {stage.data.config.planned_tokens_per_image for stages in plans[1].values() for stage in stages} == {None}


def test_the_baseline_gives_the_tokens_that_are_not_declared(workspace: Path, here: None) -> None:
    arms = {"pool": ["projector=pool", "projector.factor=4"], "learned": ["projector=resampler"]}
    (plan, _) = budget(workspace, arms)
    assert [stage.projector.config.queries for stage in plan["learned"]] == [1, 1], "in both stages"


def test_tokens_that_no_projector_can_make_are_refused(workspace: Path, here: None) -> None:
    with pytest.raises(ConfigError) as caught:
        budget(workspace, {"pool": ["projector=pool"]}, image_tokens=5, stages=["finetune.yaml"])
    assert str(caught.value) == (
        "match: tokens: pool cannot make 5 tokens of an image: its projector pool now makes 4 and can make 1, 4, 16; "
        "take another projector or another image_tokens"
    )
    with pytest.raises(ConfigError, match=r"plain cannot make 4 .*: its projector mlp now makes 16 and can make 16;"):
        budget(workspace, {"plain": ["projector=mlp"]}, image_tokens=4, stages=["finetune.yaml"])
    with pytest.raises(ConfigError, match="image_tokens: only `match: tokens` sets them, and match is natural"):
        comparison(workspace, axes={"fusion": ["concat"]}, image_tokens=4)
    assert numbers_in_words([64, *range(1, 17), 17 + 2, 20]) == "1 to 16, 19, 20, 64"
