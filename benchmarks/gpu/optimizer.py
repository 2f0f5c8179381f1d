"""AdamW over Phi-3.5's 3.8 billion parameters: torch's choice and the fused kernel, on one device and under FSDP2."""

from collections.abc import Iterable

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from benchmarks.gpu.runner import Findings, Settings
from benchmarks.gpu.timing import milliseconds
from fvl_lightning.training.memory_peak import peak_memory_bytes, reset_peak_memory

REPEATS = 3


def matrices(settings: Settings) -> nn.Sequential:
    """Returns parameters in Phi-3.5's shapes, by block."""
    layers, width, inner, vocabulary = (2, 32, 64, 100) if settings.tiny else (32, 3072, 8192, 32064)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, bias=False, device=settings.device)

    def block() -> nn.Sequential:
        norms = [nn.LayerNorm(width, bias=False, device=settings.device) for _ in range(2)]
        sizes = (width, 3 * width), (width, width), (width, 2 * inner), (inner, width)
        return nn.Sequential(*(linear(*size) for size in sizes), *norms)

    return nn.Sequential(*(block() for _ in range(layers)), linear(width, vocabulary), linear(width, vocabulary))


def findings(settings: Settings) -> Findings:
    """Yields milliseconds of an update, and the memory that it takes beyond parameters, gradients and moments."""
    model = matrices(settings)
    parameters = with_gradients(model.parameters())
    yield measured("one device, torch's choice", parameters, settings)
    yield measured("one device, fused", parameters, settings, fused=True)
    clipping = milliseconds(lambda: nn.utils.clip_grad_norm_(parameters, 1e9).item(), REPEATS, settings.device)
    yield {"case": "clip_grad_norm_", "milliseconds": clipping}
    backend = "gloo" if settings.tiny else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh(settings.device, (1,))
        for block in model:
            fully_shard(block, mesh=mesh)
        parameters = with_gradients(fully_shard(model, mesh=mesh).parameters())
        yield measured("FSDP2, torch's choice", parameters, settings)
        yield measured("FSDP2, fused", parameters, settings, fused=True)
        shards = with_gradients(nn.Parameter(parameter.to_local()) for parameter in parameters)
        yield measured("FSDP2's local shards, fused", shards, settings, fused=True)
    finally:
        distributed.destroy_process_group()


def with_gradients(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Returns the parameters, each with a gradient."""
    found = list(parameters)
    for parameter in found:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return found


def measured(case: str, parameters: list[nn.Parameter], settings: Settings, **how: bool) -> dict[str, object]:
    """Measures the updates of a new optimiser."""
    device = torch.device(settings.device)
    try:
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, **how)
        optimizer.step()
        reset_peak_memory(device)
        held = 0 if settings.tiny else torch.cuda.memory_allocated()
        took = milliseconds(optimizer.step, REPEATS, settings.device)
    except RuntimeError as error:  # also of a device whose memory is full
        return {"case": case, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    beyond = {} if settings.tiny else {"extra_bytes": peak_memory_bytes(device) - held}
    return {"case": case, "milliseconds": took, **beyond}
