"""Devices, cores and memory of a task."""

from dataclasses import dataclass

from fvl_lightning.core.config.fields import number


@dataclass
class ResourcesConfig:
    """Devices, cores and memory of every cell of a comparison; they change no result."""

    devices: int = number(1, at_least=1)
    """Ranks of a cell on each machine: one GPU each, or one process each on a CPU."""
    nodes: int = number(1, at_least=1)
    """Machines of a cell; more than one needs `launcher: slurm`."""
    threads: int = number(1, at_least=1)
    """Cores of every rank; on a CPU also its threads."""
    memory_gb: int | None = number(None, at_least=1)
    """Main memory of a cell on each machine, for SLURM and Ray; null leaves it to the cluster."""

    @property
    def world_size(self) -> int:
        """Number of ranks of a cell on all machines."""
        return self.devices * self.nodes

    @property
    def cores(self) -> int:
        """Number of cores of a cell on each machine."""
        return self.devices * self.threads
