"""What a launcher tells the processes it starts, in the environment; the standard library only."""

from __future__ import annotations

import os

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
