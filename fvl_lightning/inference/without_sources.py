"""The answer to a prompt without each source: what it would have been with zeros in its place."""

from dataclasses import replace

import torch

from fvl_lightning.inference.generation import Prompt, Sampling, answer
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.modeling.connector.alignment import AlignedSources
from fvl_lightning.modeling.connector.replacement import replace_sources, zeros


@torch.no_grad()
def with_sources(loaded: LoadedModel, prompt: Prompt) -> Prompt:
    """Returns the prompt with the features of its images, for which the encoder runs once; it may have no images."""
    if prompt.pixel_values is None or prompt.sources is not None:
        return prompt
    model = loaded.model
    pixels = prompt.pixel_values.to(model.device, model.dtype)
    return replace(prompt, sources=model.alignment(model.encoder(pixels)))


@torch.no_grad()
def answers_without_sources(loaded: LoadedModel, prompt: Prompt, sampling: Sampling) -> dict[str, str]:
    """Returns {source: the greedy answer with zeros in place of this source}, all in one batch.

    It is empty for a prompt without images, and for a model with a single source.

    Args:
        loaded: the model.
        prompt: the prompt; the encoder runs only where `sources` are missing.
        sampling: the length limit of an answer; a batch of answers is decoded greedily.
    """
    sources = with_sources(loaded, prompt).sources
    names = list(loaded.model.alignment.sources)
    if sources is None or len(names) < 2:
        return {}
    nothing, all_names = zeros(sources), torch.arange(len(names))
    prompts = [
        replace(prompt, sources=replace_sources(AlignedSources(sources), nothing, all_names != place))
        for place in range(len(names))
    ]
    return dict(zip(names, answer(loaded, prompts, Sampling(sampling.max_tokens)), strict=True))
