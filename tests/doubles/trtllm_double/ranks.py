"""The ranks of one engine, with real MPI: rank 0 leads, the others wait until it shuts down.

Polls with sleeps, so that four ranks leave two cores to others.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from trtllm_double.options import options

POLL_S = 0.02
TAG_SHUTDOWN = 7


class Ranks:
    """This process among the ranks. Without mpirun it is rank 0 of one, and MPI is not touched."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._comm: Any = None
        if options().mpi_fails:
            raise RuntimeError("MPI_Init_thread failed: the stand-in was told so")
        if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
            from mpi4py import MPI

            self._comm = MPI.COMM_WORLD
            self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        if options().die_rank == self.rank and self.size > 1:
            threading.Timer(options().die_after_ms / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def meet(self) -> None:
        """Wait until every rank has come here."""
        if self._comm is not None:
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(POLL_S)

    def follow(self) -> None:
        """Of every rank but 0: wait until the leader says shutdown."""
        while not self._comm.iprobe(source=0, tag=TAG_SHUTDOWN):
            time.sleep(POLL_S)
        self._comm.recv(source=0, tag=TAG_SHUTDOWN)

    def release(self) -> None:
        """Of rank 0: let the others go."""
        if self._comm is not None:
            for rank in range(1, self.size):
                self._comm.send(None, dest=rank, tag=TAG_SHUTDOWN)


RANKS = Ranks()
