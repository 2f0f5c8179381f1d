"""benchmarks/gpu.py, the one for a machine with a GPU: the same code on tiny models and a CPU, and what it counts."""

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning.profiling.flops import training_flops
from fvl_lightning.runs.setup import build_stage
from tests.conftest import ROOT

TINY = ("--scale", "tiny", "--device", "cpu", "--rows", "2", "--steps", "3")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The benchmark, which finds what lies beside it as a program does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module")
def options() -> argparse.Namespace:
    return argparse.Namespace(scale="tiny", device="cpu", rows=2, steps=3, peak_tflops=None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "tokenizer"
    save_tokenizer(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_whole_of_it_runs_on_a_cpu(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    gpu.main([*TINY, "--peak-tflops", "0.1", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    rows = {row["case"]: row for row in found["cases"]}
    assert list(rows) == list(gpu.CASES)
    assert "4bit needs a CUDA device" in rows.pop("finetune, QLoRA")["note"]
    for row in rows.values():
        assert row["note"] == ""
        assert row["mfu"] == pytest.approx(row["step_flops"] / row["step_seconds"] / 1e11)
        assert row["estimated_bytes"] > 0
        assert row["peak_bytes"] is None, "nobody counts on a CPU"
    assert found["fsdp_difference"] < 1e-3
    assert found["hardware"] == {"device": "cpu", "peak_flops": 1e11}
    assert found["versions"]["torch"] == torch.__version__
    assert "finetune, LoRA" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [tmp_path / "gpu.json"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_steps_are_timed_and_their_losses_are_the_same_under_fsdp(
    gpu: Any, options: argparse.Namespace, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "count", lambda *_: (10**9, 20))
    timed = argparse.Namespace(**{**vars(options), "peak_tflops": 0.1})
    one, split = (gpu.measure(case, timed, tokenizer.parent) for case in ("finetune", "finetune, FSDP"))
    for row in (one, split):
        assert row.note == ""
        assert row.tokens_per_second == pytest.approx(2 * 512 / row.step_seconds)
        assert row.mfu == pytest.approx(1e9 / row.step_seconds / 1e11)
        assert len(set(row.losses)) == 3
    assert gpu.loss_difference(one, split) < 1e-3


@pytest.mark.slow
def test_operations_on_shapes_are_those_of_the_real_model(
    gpu: Any, options: argparse.Namespace, tokenizer: Path
) -> None:
    experiment = gpu.experiment_of("finetune", options, tokenizer)
    stage = build_stage(experiment)
    assert gpu.count(experiment, 2)[0] == training_flops(stage, gpu.synthetic_batch(stage, 2, 0))


def test_random_weights_are_those_of_a_training(gpu: Any, options: argparse.Namespace, tokenizer: Path) -> None:
    experiment = gpu.experiment_of("pretrain", options, tokenizer)
    stage, expected = gpu.with_random_weights(experiment), build_stage(experiment)
    ours, theirs = (
        dict(each.model.named_parameters()) | dict(each.model.named_buffers()) for each in (stage, expected)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    learning = [{name for name, p in each.model.named_parameters() if p.requires_grad} for each in (stage, expected)]
    assert learning[0] == learning[1]


@pytest.mark.parametrize(
    ("case", "encoder", "learning"), [("pretrain", 571, 4423), ("finetune", 571, 3853), ("finetune, LoRA", 571, 57)]
)
def test_the_full_scale_is_the_preset_at_its_size(
    gpu: Any, options: argparse.Namespace, tokenizer: Path, case: str, encoder: int, learning: int
) -> None:
    full = argparse.Namespace(**{**vars(options), "scale": "full"})
    experiment = gpu.experiment_of(case, full, tokenizer)
    stage = build_stage(experiment, "meta")
    stage.adapt(Path())
    sizes = [(name, p.numel(), p.requires_grad) for name, p in stage.model.named_parameters()]
    assert sum(n for name, n, _ in sizes if name.startswith("encoder.")) / 1e6 == pytest.approx(encoder, abs=1)
    assert sum(n for _, n, learns in sizes if learns) / 1e6 == pytest.approx(learning, abs=1)
    assert stage.model.image_spec.tokens_per_image == 576
    assert experiment.data.config.sequence_length == 2048
    assert experiment.trainer.precision == "bf16-mixed"


def test_losses_are_compared_step_by_step(gpu: Any) -> None:
    one, other = gpu.Row("a", losses=[2.0, 4.0]), gpu.Row("b", losses=[2.0, 4.4])
    assert gpu.loss_difference(one, other) == pytest.approx(0.1)
    assert gpu.loss_difference(one, gpu.Row("b")) is None


def test_without_a_gpu_it_says_what_to_do(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "--scale tiny --device cpu runs the same code" in capsys.readouterr().err


def test_what_does_not_fit_is_told(
    gpu: Any, options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "count", lambda *_: (10, 20))
    monkeypatch.setattr(gpu, "train", full)
    row = gpu.measure("finetune", options, tmp_path)
    assert (row.note, row.step_flops, row.estimated_bytes) == ("does not fit", 10, 20)
    assert row.step_seconds is None
