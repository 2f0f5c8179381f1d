"""How fast questions are answered: in batches against one by one, and an image encoded once against each time.

    python benchmarks/scoring.py [--run runs/demo/concat/finetune] [--images 64] [--repeats 3]

The model is that of a finished run on a demo set, on its test images with eight questions each. All ways answer the
same questions and take turns, and their answers are compared. Prints a table and saves benchmarks/results/scoring.json.
Takes two minutes on two cores.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from recording import record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fvl_lightning.evaluation.batched_answers import AskedPrompt, Asking, answer_prompts
from fvl_lightning.evaluation.scoring import open_model
from fvl_lightning.inference.generation import generate_texts
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.runs.folder import RunFolder

QUESTIONS_PER_IMAGE = 8

Way = Callable[[], list[str]]


def main() -> None:
    """Answers the questions in every way, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo/concat/finetune")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    words = parser.parse_args()
    torch.set_num_threads(1)
    built, data = open_model(RunFolder.open(words.run), accelerator="cpu")
    questions = data.questions("test")
    images = list(dict.fromkeys(question.index for question in questions))[: words.images]
    # Every image is asked about with the same texts, those of the first questions.
    asked = list({str(question.prompt_messages): question for question in questions}.values())[:QUESTIONS_PER_IMAGE]
    prompts = [
        AskedPrompt(data.encoder.prompt(question.prompt_messages), (image,))
        for image, question in itertools.product(images, asked)
    ]
    pixels = {image: data.pixels("test", [image])[0] for image in images}
    found = measure(built, prompts, pixels, words.repeats)
    result = {
        "run": words.run,
        "questions": len(prompts), "questions_per_image": QUESTIONS_PER_IMAGE, "threads": torch.get_num_threads(),
        "questions_per_second": found,
        "ratio": {
            "batches to one by one": found["batches"] / found["one by one"],
            "an image encoded once to each time": found["batches"] / found["batches, an image encoded each time"],
        },
    }  # fmt: skip
    record("scoring", result)
    table = Table("way", "questions/s", "to the first", title=f"{len(prompts)} questions about {len(images)} images")
    for way, speed in found.items():
        table.add_row(way, f"{speed:.1f}", f"{speed / found['one by one']:.2f}")
    Console().print(table)


def measure(
    built: BuiltModel, prompts: Sequence[AskedPrompt], pixels: dict[int, Tensor], repeats: int
) -> dict[str, float]:
    """Returns {way: questions per second}, the median of the repeats; the ways take turns."""
    # Each question has an image number of its own, so that no two share an encoding.
    own = [AskedPrompt(prompt.ids, (number,)) for number, prompt in enumerate(prompts)]
    shown = [prompt.images[0] for prompt in prompts]
    ways: dict[str, Way] = {
        "one by one": lambda: [one_by_one(built, prompt, pixels[prompt.images[0]]) for prompt in prompts],
        "batches, an image encoded each time": lambda: answer_prompts(
            built, own, lambda numbers: torch.stack([pixels[shown[number]] for number in numbers]), Asking()
        ),
        "batches": lambda: answer_prompts(
            built, prompts, lambda numbers: torch.stack([pixels[number] for number in numbers]), Asking()
        ),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        answers = []
        for way, answer in ways.items():
            start = time.perf_counter()
            answers.append(answer())
            seconds[way].append(time.perf_counter() - start)
        if not answers[0] == answers[1] == answers[2]:
            raise SystemExit("the ways gave different answers")
    return {way: len(prompts) / statistics.median(taken) for way, taken in seconds.items()}


@torch.no_grad()
def one_by_one(built: BuiltModel, prompt: AskedPrompt, image: Tensor) -> str:
    """Answers one question, as a loop over transformers' generate does."""
    (text,) = generate_texts(built, [prompt.ids], pixel_values=image[None])
    return text


if __name__ == "__main__":
    main()
