"""Which rank this process is, by what its launcher put into the environment; the standard library only."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass

from ..errors import InputError

# Rank, ranks, rank on this machine, ranks on this machine.
NAMES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NTASKS_PER_NODE'),
    'mpi': (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
        'OMPI_COMM_WORLD_LOCAL_SIZE',
    ),
}
_STARTED_BY = {
    'pytorch': 'tools/dist_train.sh CONFIG 4, or torchrun',
    'slurm': 'tools/slurm_train.sh, or srun',
    'mpi': 'mpirun',
}


def place_of(launcher: str) -> dict[str, str]:
    """This process's place among all, under torch's names, from what its launcher said.

    Raises:
        InputError: If it said nothing: then nothing started this process as one of several.
    """
    rank, size, local_rank, local_size = NAMES[launcher]
    missing = [name for name in (rank, size) if name not in os.environ]
    if missing:
        raise InputError(
            f'--launcher {launcher}: {" and ".join(missing)} not in the environment, so nothing started this '
            f'process as one of several. Start it by {_STARTED_BY[launcher]}, or leave --launcher out'
        )
    return dict(
        RANK=os.environ[rank],
        WORLD_SIZE=os.environ[size],
        LOCAL_RANK=os.environ.get(local_rank, os.environ[rank]),
        LOCAL_WORLD_SIZE=os.environ.get(local_size, '1'),
    )


@dataclass
class Place:
    """Where a process stands among those of its run.

    Attributes:
        rank: Among all; 0 speaks and writes for all.
        local_rank: Among those on this machine.
        is_launched: Whether a launcher started it, so that the process is the command's alone.
    """

    rank: int = 0
    local_rank: int = 0
    is_launched: bool = False

    @staticmethod
    def has_joined() -> bool:
        """Whether this process works with others already."""
        torch = sys.modules.get('torch')
        return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


# Alone, until a command says what started it.
this_process = Place()


def take_place(launcher: str) -> None:
    """Set `this_process` to the rank that a launcher made of it; ``'none'`` is alone.

    Raises:
        InputError: If that launcher did not start this process.
    """
    place = dict(RANK=0, LOCAL_RANK=0) if launcher == 'none' else place_of(launcher)
    this_process.rank, this_process.local_rank = int(place['RANK']), int(place['LOCAL_RANK'])
    this_process.is_launched = launcher != 'none'


def is_first() -> bool:
    """Whether this process is the only one of its run, or the one that writes and speaks for all."""
    return this_process.rank == 0


def end_rank(code: int) -> None:
    """End a rank whose work is done here and now; a process that no launcher started goes on.

    Threads of gloo outlive their group, and one in six pairs of ranks aborted on them while Python and torch
    took themselves down ("terminate called without an active exception").
    """
    if this_process.is_launched:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
