"""Conversations without images among others: batches that have none are trained and validated on like any."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.storage.writer import ShardWriter
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run

TEXT_ONLY, WITH_IMAGE = 12, 4


def conversation(image: bool) -> dict[str, object]:
    """A record as shards hold it."""
    shown = [{"type": "image"}] if image else []
    return {"messages": [
        {"role": "user", "content": [*shown, {"type": "text", "text": "what colour is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]}  # fmt: skip


@pytest.fixture
def folder(workspace: Path) -> Path:
    """A working folder with shards of which three samples in four have no image; the last ones have one."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "PNG")
    for split in ("train", "validation"):
        with ShardWriter(workspace / "shards", split) as writer:
            for k in range(TEXT_ONLY + WITH_IMAGE):
                image = k >= TEXT_ONLY
                writer.write(f"{k:06d}", conversation(image), [content.getvalue()] * image)
    return workspace


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], marks=pytest.mark.slow), ["data.packing=best_fit", "data.sequence_length=48"],
        pytest.param(["trainable.encoder=full", "fusion=attention"], marks=pytest.mark.slow),
        ["feature_cache=features", "fusion=gated"],
    ],
    ids=["padded", "packed", "end to end", "cached features"],
)  # fmt: skip
def test_batches_without_images_train(folder: Path, fvl_here: Run, words: list[str]) -> None:
    data = ["data={name: shards, root: shards, view: conversation}", "trainer.batch_size=1", "trainer.max_steps=6"]
    less = [word for word in TINY if not word.startswith(("data.", "trainer."))]
    done = fvl_here(
        folder, "train", "experiments/demo/finetune.yaml", *less, *data, "trainer.log_every=1", "name=mixed", *words
    )
    assert done.returncode == 0, done.stderr
    run = RunFolder(folder / "runs" / "mixed")
    losses = [loss for _, loss in run.curve("train/loss")]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    assert run.curve("validation/loss")
    masses = run.curve("mass/davit")
    assert not masses or len(masses) < 6, "each step saw an image, and nothing was tested"
