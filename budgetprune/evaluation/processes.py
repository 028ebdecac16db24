"""The processes of one run: each asks its share, the main one writes, and none waits for one that is gone.

Objects travel over gloo, whatever the device: a closed connection is noticed at once there, and the GPUs stay free.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # between the first process that has its share of a cell and the last


class ProcessLost(RuntimeError):
    """Another process of the run failed or ended."""


class Processes:
    """This process among those of its run; by itself it is the only one."""

    rank, count, _group, _device = 0, 1, None, None

    @classmethod
    def launched(cls, patience: timedelta = PATIENCE) -> "Processes":
        """All that torchrun or accelerate launch started, or the only one. patience: see PATIENCE."""
        found = cls()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            import torch.distributed as dist
            from accelerate import PartialState

            state = PartialState(cpu=not torch.accelerator.is_available())
            if state.num_processes != int(os.environ["WORLD_SIZE"]):  # each would think that it writes alone
                raise RuntimeError(f"WORLD_SIZE must be the processes that have met, {state.num_processes}, got "
                                   f"{os.environ['WORLD_SIZE']}")
            found.rank, found.count, found._device = state.process_index, state.num_processes, state.device
            found._group = dist.new_group(backend="gloo", timeout=patience)
        return found

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def device(self, default):
        """Where this one's model runs: a GPU of its own where there are some; `default` where it is alone."""
        return default if self._device is None or self._device.type == "cpu" else self._device

    def gather(self, make: Callable[..., T], *arguments) -> list[T] | None:
        """What `make(*arguments)` gave in every process, by rank, in the main one; None in the others.

        An error in one ends all: it is raised as it is where it came up, as ProcessLost elsewhere.
        """
        if self.count == 1:
            return [make(*arguments)]
        import torch.distributed as dist

        mine = self._agreed(make, arguments)
        found = [None] * self.count if self.main else None
        self._reached(lambda: dist.gather_object(mine, found, dst=0, group=self._group))
        return found

    def share(self, make: Callable[..., T], *arguments) -> T:
        """What `make(*arguments)` gave in the main process, in all of them; the others wait. Errors: see gather."""
        if self.count == 1:
            return make(*arguments)
        import torch.distributed as dist

        given = [self._agreed(make, arguments) if self.main else self._agreed(lambda: None, ())]
        self._reached(lambda: dist.broadcast_object_list(given, src=0, group=self._group))
        return given[0]

    def _agreed(self, make, arguments):
        """What `make` gives, once every process is known to have got through its own."""
        import torch.distributed as dist

        error = value = None
        try:
            value = make(*arguments)
        except Exception as came:
            error = came
        said = [None] * self.count
        word = None if error is None else f"{type(error).__name__}: {error}"
        try:
            self._reached(lambda: dist.all_gather_object(said, word, group=self._group))
        except ProcessLost:
            if error is None:
                raise
        if error is not None:
            raise error
        failed = [(rank, word) for rank, word in enumerate(said) if word is not None]
        if failed:
            raise ProcessLost(f"process {failed[0][0]} of {self.count} failed, {failed[0][1]}")
        return value

    def _reached(self, exchange):
        try:
            exchange()
        except RuntimeError as error:  # gloo: a connection was closed, or patience ran out
            raise ProcessLost(f"another of the {self.count} processes ended or did not answer: "
                              f"{str(error).splitlines()[0]}") from error

    def leave(self) -> None:
        """Ends the connections to the others, who must be done as well."""
        if self.count > 1:
            import torch.distributed as dist

            self._reached(lambda: dist.barrier(group=self._group))
            dist.destroy_process_group()
