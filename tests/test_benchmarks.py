"""benchmarks/gpu, the checks for a machine with a GPU: their plan, and the same code on tiny models and a CPU."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import runner
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.devices import devices_used, finding
from benchmarks.gpu.plan import CHECKS, PLANS, RECOMPUTE_NOTHING, Check, chosen, time_for
from benchmarks.gpu.runner import Settings, command_line, read, run_checks
from benchmarks.gpu.smoke import COMMON, DEMO, ON_A_GPU
from benchmarks.gpu.table import count, table_of, with_counts
from benchmarks.gpu.training import experiment_of, findings, synthetic_batch, with_random_weights
from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning import load_experiment
from fvl_lightning.profiling.flops import training_flops
from fvl_lightning.runs.setup import build_stage

TINY = Settings(tiny=True, rows=2, steps=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("benchmark")
    save_tokenizer(made / "tokenizer")
    return made


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The plan, and what a check costs the others.


def test_a_check_gets_its_limit_or_what_is_left_or_is_passed_over() -> None:
    check = Check("a", 100, "a")
    assert [time_for(check, left) for left in (1000, 100, 60, 59.9, -1)] == [100, 100, 60, None, None]


def test_checks_are_chosen_by_name_in_the_order_of_the_plan() -> None:
    assert [check.name for check in chosen([])] == list(PLANS["one"].checks)
    assert [check.name for check in chosen([], "several")] == list(PLANS["several"].checks)
    assert {name for plan in PLANS.values() for name in plan.checks} == {check.name for check in CHECKS}
    assert [check.name for check in chosen(["transfer", "attention"])] == ["attention", "transfer"]
    with pytest.raises(ValueError, match=r"unknown check 'smok', expected some of attention, smoke, .*finetune-qlora"):
        chosen(["smok"])
    assert len({check.name for check in CHECKS}) == len(CHECKS)


SCRIPTS = {
    "finds": "os.chdir('/'); append(lines, {'check': 'finds', 'case': 'one', 'milliseconds': 2.0})",
    "crashes": "append(lines, {'check': 'crashes', 'case': 'before', 'error': 'x'}); print('last line'); os._exit(139)",
    "hangs": "subprocess.Popen(['sleep', '60']); time.sleep(60)",
    "large": "raise SystemExit('this was started')",
    "last": "append(lines, {'check': 'last', 'case': 'two', 'same_bits': True})",
}


def _script(check: Check, lines: Path) -> list[str]:
    """The command of a check that does what SCRIPTS says."""
    begin = f"import json, os, pathlib, subprocess, time; lines = pathlib.Path({str(lines)!r})\n"
    append = "def append(file, line): open(file, 'a').write(json.dumps(line) + chr(10))\n"
    return [sys.executable, "-c", begin + append + SCRIPTS[check.name]]


def test_a_crash_or_a_hang_costs_one_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finding is saved at once; what does not fit into the time is passed over, and the next one runs."""

    def command(check: Check, settings: Settings, lines: Path) -> list[str]:
        assert settings == TINY
        return _script(check, lines)

    monkeypatch.chdir(tmp_path)
    limits = {"finds": 9, "crashes": 9, "hangs": 1, "large": 900, "last": 9}
    shown: list[str] = []
    checks = [Check(name, limit, "") for name, limit in limits.items()]
    lines = run_checks(checks, TINY, Path("out"), 60, shown.append, command)
    found = [(line["check"], line.get("case"), line.get("end")) for line in lines]
    assert found == [
        ("finds", "one", None),
        ("finds", None, "ok"),
        ("crashes", "before", None),
        ("crashes", None, "exit code 139"),
        ("hangs", None, "killed after 1 s"),
        ("large", None, "passed over"),
        ("last", "two", None),
        ("last", None, "ok"),
    ]
    assert lines[3]["last_lines"][-1] == "last line"
    assert [json.loads(line)["check"] for line in shown] == list(limits)
    assert "last line" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    rows = list(zip(*(column._cells for column in table_of(lines).columns), strict=True))
    assert [row[0] for row in rows] == ["finds", "crashes", "crashes", "hangs", "large", "last"]
    assert [rows[0][2], rows[1][2], rows[5][2]] == ["2 ms", "x", "the same bits"]


def test_earlier_results_are_neither_replaced_nor_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--table", "--output", str(tmp_path)], "has no results of an earlier start (machine.json)"),
        (["--tiny", "--output", str(tmp_path)], "has results of an earlier start; name another folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
        (tmp_path / "machine.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


def test_ctrl_c_ends_the_check_under_way_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.gpu.__main__.run_checks", stop)
    assert main(["--tiny", "--output", str(tmp_path / "out")]) == 130
    assert "stopped; --table --output" in capsys.readouterr().out


def test_the_plan_of_eight_minutes_starts_nearly_all_checks() -> None:
    """A check takes about half of its limit; then the ten that show most run within the plan's seconds."""
    left, started = float(PLANS["one"].seconds), []
    for check in chosen([]):
        if time_for(check, left) is not None:
            started.append(check.name)
            left -= 0.45 * check.limit
    assert started[:10] == list(PLANS["one"].checks)[:10]
    assert PLANS["one"].seconds == 480


def test_the_device_of_every_called_module_is_seen() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    with devices_used() as found:
        layers(torch.ones(1, 2))
        layers.to("meta")(torch.ones(1, 2, device="meta"))
    assert found == {"cpu", "meta"}
    layers(torch.ones(1, 2, device="meta"))
    assert finding("a", {"cpu"}, TINY) == {"case": "a", "devices": ["cpu"]}
    assert finding("a", found, TINY)["error"] == "computed on cpu, meta"
    assert finding("a", set(), TINY)["error"] == "computed on nothing"


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "checks.jsonl").write_text('{"check": "a"}\n{"che', encoding="utf-8")
    assert read(tmp_path / "checks.jsonl") == [{"check": "a"}]
    assert read(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--checks", "smok"], "--checks: unknown check 'smok'"),
        (["--steps", "3"], "more than 3 steps"),
        ([], "this machine has no CUDA device; --tiny runs the same code on a CPU"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert sentence in capsys.readouterr().err


def test_cases_that_need_a_gpu_are_experiments() -> None:
    for case, experiment, overrides in ON_A_GPU:
        words = (*COMMON, "trainer.accelerator=cuda", *overrides)
        assert load_experiment(DEMO / f"{experiment}.yaml", *words).trainer.max_steps == 3, case


# The trainings.


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_steps_are_timed_and_their_losses_are_the_same_under_fsdp() -> None:
    (one,) = findings(TINY, "finetune", profiled=True)
    (other,) = findings(TINY, "finetune", ("trainer.strategy=fsdp",))
    for each in (one, other):
        assert len(set(each["losses"])) == 4
        assert each["step_seconds"] > 0
        assert each["peak_bytes"] > 2**20
    assert other["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert one["kernels"][0]["share"] == max(kernel["share"] for kernel in one["kernels"])
    (refused,) = findings(TINY, "finetune_qlora")
    assert "4bit needs a CUDA device" in refused["error"]


def test_what_does_not_fit_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("benchmarks.gpu.training.train", full)
    (found,) = findings(TINY, "finetune", (RECOMPUTE_NOTHING,))
    assert found == {"case": f"finetune {RECOMPUTE_NOTHING}", "error": "does not fit"}


@pytest.mark.slow
def test_operations_on_shapes_are_those_of_the_real_model(folder: Path) -> None:
    experiment = experiment_of(TINY, "finetune", (), folder)
    stage = build_stage(experiment)
    flops, memory = count(experiment, 2)
    assert flops == training_flops(stage, synthetic_batch(stage, 2, 0))
    assert memory > 0


def test_the_table_has_what_is_counted_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.table.count", lambda *_: (10**12, 3 * 10**9))
    line = {"check": "a", "case": "b", "preset": "finetune", "overrides": [], "rows": 2, "step_seconds": 0.5}
    (counted,) = with_counts([line], TINY, "NVIDIA H200")
    assert counted["tokens_per_second"] == 2 * 512 / 0.5
    assert counted["mfu"] == pytest.approx(2e12 / 989e12)
    (unknown,) = with_counts([line], TINY, "another")
    assert unknown["mfu"] is None
    assert "1 TFLOP a step, 3 GB estimated" in str(table_of([counted]).columns[2]._cells[0])


def test_random_weights_are_those_of_a_training(folder: Path) -> None:
    experiment = experiment_of(TINY, "pretrain", (), folder)
    stage, expected = with_random_weights(experiment, "cpu"), build_stage(experiment)
    ours, theirs = (
        dict(each.model.named_parameters()) | dict(each.model.named_buffers()) for each in (stage, expected)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    learning = [{name for name, p in each.model.named_parameters() if p.requires_grad} for each in (stage, expected)]
    assert learning[0] == learning[1]


@pytest.mark.parametrize(
    ("preset", "encoder", "learning"), [("pretrain", 571, 4423), ("finetune", 571, 3853), ("finetune_lora", 571, 57)]
)
def test_the_full_scale_is_the_preset_at_its_size(folder: Path, preset: str, encoder: int, learning: int) -> None:
    experiment = experiment_of(Settings(), preset, ("trainer.accelerator=cpu",), folder)
    stage = build_stage(experiment, "meta")
    stage.adapt(Path())
    sizes = [(name, p.numel(), p.requires_grad) for name, p in stage.model.named_parameters()]
    assert sum(n for name, n, _ in sizes if name.startswith("encoder.")) / 1e6 == pytest.approx(encoder, abs=1)
    assert sum(n for _, n, learns in sizes if learns) / 1e6 == pytest.approx(learning, abs=1)
    assert stage.model.image_spec.tokens_per_image == 576
    assert experiment.data.config.sequence_length == 2048
    assert experiment.trainer.precision == "bf16-mixed"


# The whole, as a GPU would run it.

ABSENT = (
    "mlflow", "sqlalchemy", "pandas", "bitsandbytes", "simplejpeg", "boto3", "s3fs", "gradio",
    "starlette",
)  # fmt: skip
"""Packages that docs/gpu.md does not list; the processes of the checks do not find them."""
HIDING = f"""
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *where: None if name.split(".")[0] in {ABSENT} else find(name, *where)
)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_whole_of_it_runs_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One check is made to hang and one to fail, after a finding each; none of the others is lost."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("benchmarks.gpu.plan.SHARE_OF_LIMIT", 0)
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding" / "sitecustomize.py").write_text(HIDING, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hiding"))
    slower = [Check(check.name, 10 * check.limit, check.module, check.arguments) for check in CHECKS]
    slower[1:1] = [Check("hangs", 2, ""), Check("crashes", 60, "")]
    monkeypatch.setattr("benchmarks.gpu.__main__.chosen", lambda names, plan: slower)

    def command(check: Check, settings: Settings, lines: Path) -> list[str]:
        return _script(check, lines) if check.name in SCRIPTS else command_line(check, settings, lines)

    monkeypatch.setattr(runner, "command_line", command)
    output = tmp_path / "gpu"
    assert main(["--tiny", "--rows", "2", "--steps", "4", "--seconds", "6000", "--output", str(output)]) == 1
    saved = json.loads((output / "gpu.json").read_text(encoding="utf-8"))
    ends = {line["check"]: line["end"] for line in saved["checks"] if "end" in line}
    log = (output / "log.txt").read_text(encoding="utf-8")
    expected = {check.name: "ok" for check in CHECKS} | {"hangs": "killed after 2 s", "crashes": "exit code 139"}
    assert ends == expected, log
    errors = {(line["check"], line["case"]): line["error"] for line in saved["checks"] if "error" in line}
    assert errors.pop(("crashes", "before")) == "x"
    assert list(errors) == [("finetune-qlora", "finetune_qlora")], errors
    assert "4bit needs a CUDA device" in errors.popitem()[1]
    found = {(line["check"], line["case"]): line for line in saved["checks"] if "case" in line}
    assert found["attention", "mask, torch's choice (packed rows)"]["difference"] < 1e-5
    assert found["smoke", "two deterministic trainings"]["same_bits"] is True
    assert found["smoke", "finetune in float32, cpu beside cpu"]["difference"] == 0
    assert found["finetune", "finetune"]["mfu"] is None
    assert found["finetune", "finetune"]["estimated_bytes"] > 0
    assert {case for check, case in found if check == "comparison"} == {
        "the whole comparison", "attention", "concat", "gated",
    }  # fmt: skip
    devices = {case: line["devices"] for (check, case), line in found.items() if check == "devices"}
    assert devices == {"encoder of the feature cache": ["cpu"], "fvl evaluate": ["cpu"]}
    assert found["wall-clock", "finetune, 2 batches a step"]["difference"] < 0.05
    assert found["scoring", "4 questions with 4 tokens of answer each"]["questions_per_second"] > 0
    several = {case: line["difference"] for (check, case), line in found.items() if check == "ranks"}
    assert list(several) == ["one device", "ddp on 2", "fsdp on 2", "hsdp, two groups of 1"]
    assert max(several.values()) < 1e-5
    assert saved["versions"]["torch"] == torch.__version__
    assert "finetune-lora" in capsys.readouterr().out
    assert main(["--table", "--output", str(output)]) == 1, "the same from what was saved"
    assert json.loads((output / "gpu.json").read_text(encoding="utf-8")) == saved
    assert runner.LOG in {file.name for file in output.iterdir()}
