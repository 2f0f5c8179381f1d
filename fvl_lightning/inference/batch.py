"""Answers to many requests, batched and written as they come."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import progress_bar, say, visible
from fvl_lightning.inference.answers_file import AnswersFile
from fvl_lightning.inference.generation import Prompt, Sampling, answer, encode
from fvl_lightning.inference.requests import Request, Requests
from fvl_lightning.modeling.build import LoadedModel

SAID = 5
"""Rows without an answer that are told one by one; the file has them all."""


def answer_all(
    loaded: LoadedModel, requests: Requests, answers: AnswersFile, sampling: Sampling, batch_size: int, seed: int
) -> int:
    """Answers the requests that have no row yet, batch by batch; returns how many of them can't be."""
    waiting = islice(requests.read(), answers.done, None)
    failed, number = 0, answers.done
    with progress_bar("answering", requests.count) as advance:
        advance(number)
        while batch := list(islice(waiting, batch_size)):
            torch.manual_seed(seed + number)  # what is drawn for a batch is the same after a stop
            rows = answer_batch(loaded, batch, sampling)
            answers.append(rows)
            for request, row in zip(batch, rows, strict=True):
                if "error" in row:
                    failed += 1
                    _say(request, row, failed)
            number += len(batch)
            advance(len(batch))
    return failed


def answer_batch(loaded: LoadedModel, batch: Sequence[Request], sampling: Sampling) -> list[dict[str, Any]]:
    """A row for each request: what it tells, with its answer or with the error that it has none for."""
    rows: list[dict[str, Any]] = [dict(request.told) for request in batch]
    prompts: dict[int, Prompt] = {}
    for place, request in enumerate(batch):
        try:
            prompts[place] = encode(loaded, request.messages(loaded.processor.image_processor.reader))
        except DataError as error:
            rows[place]["error"] = str(error)
    if prompts:
        for place, text in zip(prompts, answer(loaded, list(prompts.values()), sampling), strict=True):
            rows[place]["answer"] = text
    return rows


def _say(request: Request, row: dict[str, Any], failed: int) -> None:
    if failed <= SAID:
        more = "; further ones are in the output only" if failed == SAID else ""
        say(visible(f"{request.place}: {row['error']}{more}"), stderr=True)
