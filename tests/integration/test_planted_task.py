"""A difference that lies in one task alone, planted in real trainings: an arm whose fusion drops what the image shows.

Both arms learn the words, which stand in the question; only one can learn the colours. The data has no split test. A
quarter of the pictures are purple, which training never shows: what a model calls them differs from seed to seed.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.storage.writer import ShardWriter
from tests.conftest import Run, furnish
from tests.integration.test_comparison import start

SEEDS = 20
COLOURS, WORDS = ("red", "blue"), ("cat", "dog")
BLIND = """
from dataclasses import dataclass

from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FusionOutput
from fvl_lightning.fusions.concat import ConcatFusion


@register("fusion", "blind")
class BlindFusion(ConcatFusion):
    \"\"\"The features of concat, all zero.\"\"\"

    @dataclass
    class Config:
        \"\"\"As that of concat.\"\"\"

        repeat: int = 1

    def forward(self, sources):
        return FusionOutput(super().forward(sources).features * 0)
"""
TOKENIZERS = ("encoder.tokenizer=data/demo/tokenizer", "language_model.tokenizer=data/demo/tokenizer")
SET = (
    "data={name: shards, root: shards, view: conversation}", *TOKENIZERS, "encoder.sources=[davit]",
    "trainer.batch_size=16", "trainer.max_steps=60", "trainer.validate_every=60", "trainer.checkpoint_every=60",
    "trainer.log_every=20", "optimizer.warmup_steps=5", "tracking.enabled=false",
)  # fmt: skip


def picture(generator: np.random.Generator, colour: str) -> bytes:
    """A picture of one colour, of a brightness of its own."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    channels = {"red": [0], "blue": [2], "purple": [0, 2]}[colour]
    pixels[..., channels] = generator.integers(150, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def asked(text: str, answer: str, image: bool = False) -> list[dict[str, Any]]:
    parts = [*([{"type": "image"}] if image else []), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]


def write_data(folder: Path) -> None:
    """Writes shards for training and validation, and the rows of the two tasks."""
    generator = np.random.default_rng(0)
    for split, samples in (("train", 64), ("validation", 8)):
        with ShardWriter(folder / "shards", split) as writer:
            for number in range(samples):
                colour, word = COLOURS[number % 2], WORDS[int(generator.integers(2))]
                talk = [*asked("what colour?", colour, image=True), *asked(f"say {word}", word)]
                writer.write(f"{number:03}", {"messages": talk}, [picture(generator, colour)])
    (folder / "pictures").mkdir()
    rows = []
    for number in range(32):
        colour = ("red", "blue", "blue", "purple")[number % 4]
        (folder / "pictures" / f"{number}.png").write_bytes(picture(generator, colour))
        answer = "red" if colour == "purple" else colour  # so that either colour alone is right for one half
        rows.append({"image": f"{number}.png", "colour": answer, "word": WORDS[number // 2 % 2]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, prompt, answer in (("colours", "what colour?", "colour"), ("words", "say {word}", "word")):
        task = {"title": name.capitalize(), "data": {"files": "rows.jsonl", "images": "pictures"}, "prompt": prompt,
                "fields": {"question": "", "answers": [answer]}, "answer": {"tokens": 3}}  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def write_comparison(folder: Path, metric: str, seeds: int) -> None:
    values = {
        "name": "tiny", "stages": ["experiments/demo/finetune.yaml"], "plugins": ["blind.py"],
        "arms": {"concat": {"set": ["fusion=concat"]}, "blind": {"set": ["fusion=blind"]}},
        "seeds": list(range(seeds)), "metric": metric, "set": list(SET),
        "evaluate": {"tasks": ["colours.yaml", "words.yaml"], "correction": "holm"},
    }  # fmt: skip
    (folder / "blind.py").write_text(BLIND, encoding="utf-8")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@pytest.mark.slow
def test_a_difference_in_one_task_is_found_there_and_not_elsewhere(
    tmp_path: Path, tiny_data: Path, fvl_here: Run
) -> None:
    folder = furnish(tmp_path, tiny_data)
    write_data(folder)
    found: dict[str, dict[str, str]] = {}
    for metric in ("tasks/colours", "tasks/words"):  # the cells are the same ones, and are scored once
        write_comparison(folder, metric, SEEDS)
        done, _ = start(folder, fvl_here)
        assert done.returncode == 0, done.stderr
        report = json.loads((folder / "runs" / "tiny" / "comparison.json").read_text(encoding="utf-8"))
        assert not report["evaluation"]["test_split"]
        statistics = report["statistics"]
        found[metric] = {one["arm"]: one["verdict"] for one in statistics["contrasts"]}
        (contrast,) = statistics["tasks"]["family"]["contrasts"]
        found[f"beside {metric}"] = {contrast["score"]: contrast["verdict"]}
        interval = statistics["tasks"]["questions"]["scores"]["tasks/colours/macro"]["blind"]["interval"]
        assert interval[1] < 0
    assert found["tasks/colours"] == {"blind": "worse"}
    assert found["beside tasks/words"] == {"tasks/colours/macro": "worse"}
    assert found["tasks/words"]["blind"] not in ("better", "worse")
    assert found["beside tasks/colours"]["tasks/words/macro"] not in ("better", "worse")
