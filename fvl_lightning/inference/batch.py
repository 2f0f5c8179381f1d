"""Answers many requests in batches and writes the answers as they come."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import progress_bar, say
from fvl_lightning.inference.answers_file import AnswersFile
from fvl_lightning.inference.generation import Prompt, Sampling, answer, encode
from fvl_lightning.inference.requests import Request, Requests
from fvl_lightning.modeling.build import LoadedModel

MAX_PRINTED_ERRORS = 5
"""Errors that are printed; the output file holds all of them."""


def answer_all(
    loaded: LoadedModel, requests: Requests, answers: AnswersFile, sampling: Sampling, batch_size: int, seed: int
) -> int:
    """Answers the requests that have no row yet, batch by batch; returns the number of failures among them."""
    waiting = islice(requests.read(), answers.done, None)
    failed, number = 0, answers.done
    with progress_bar("answering", requests.count) as advance:
        advance(number)
        while batch := list(islice(waiting, batch_size)):
            torch.manual_seed(seed + number)  # a resumed process samples the same tokens for a batch
            rows = answer_batch(loaded, batch, sampling)
            answers.append(rows)
            for request, row in zip(batch, rows, strict=True):
                if "error" in row:
                    failed += 1
                    _print_error(request, row, failed)
            number += len(batch)
            advance(len(batch))
    return failed


def answer_batch(loaded: LoadedModel, batch: Sequence[Request], sampling: Sampling) -> list[dict[str, Any]]:
    """Returns a row per request: its fields with "answer", or with "error" where it cannot be answered."""
    rows: list[dict[str, Any]] = [dict(request.fields) for request in batch]
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


def _print_error(request: Request, row: dict[str, Any], failed: int) -> None:
    if failed <= MAX_PRINTED_ERRORS:
        more = "; further ones are in the output only" if failed == MAX_PRINTED_ERRORS else ""
        say(f"{request.place}: {row['error']}{more}", stderr=True)
