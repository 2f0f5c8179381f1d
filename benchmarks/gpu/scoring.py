"""How fast a 3B model answers: questions with an image each, in the batches that scoring makes."""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu.runner import Findings, Settings
from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.training import experiment_of, with_random_weights
from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning.evaluation.batched_answers import AskedPrompt, Asking, answer_prompts
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.training.memory_peak import peak_memory_bytes, reset_peak_memory

QUESTIONS, QUESTION_TOKENS, ANSWER_TOKENS = 128, 64, 32


def findings(settings: Settings) -> Findings:
    """Yields questions per second and peak memory; the model is in bfloat16, with random weights."""
    questions, tokens = (4, 4) if settings.tiny else (QUESTIONS, ANSWER_TOKENS)
    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(Path(name) / "tokenizer")
        stage = with_random_weights(experiment_of(settings, "finetune", (), Path(name)), settings.device)
        model = stage.model.to(torch.bfloat16).eval()
        model.generation_config.eos_token_id = None  # random weights end an answer anywhere, and all are to be as long
        spec, image = model.image_spec, model.config.image_token_id
        text = [int(image == 0)] * QUESTION_TOKENS
        prompts = [AskedPrompt([image] * spec.tokens_per_image + text, (number,)) for number in range(questions)]

        def pixels(numbers: object) -> torch.Tensor:
            return torch.randn(len(list(numbers)), 3, spec.size, spec.size)  # type: ignore[call-overload]

        asking = Asking(precision="bf16-mixed", tokens=tokens)
        built = BuiltModel(model, stage.tokenizer)
        answer_prompts(built, prompts[:2], pixels, asking)
        reset_peak_memory(torch.device(settings.device))
        started = time.perf_counter()
        answer_prompts(built, prompts, pixels, asking)
        synchronize(settings.device)
        seconds = time.perf_counter() - started
        yield {
            "case": f"{questions} questions with {tokens} tokens of answer each", "seconds": seconds,
            "questions_per_second": questions / seconds,
            "peak_bytes": peak_memory_bytes(torch.device(settings.device)),
        }  # fmt: skip
