"""What each of two gloo processes of an evaluation runs; a module of its own, because spawned processes import it."""

import os
import signal
import sys
import time
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

RANKS = 2


def meet(rank, folder):
    """As torchrun would have it; the port is not used, since the processes meet in the folder."""
    from budgetprune.evaluation.processes import Processes

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
                            timeout=timedelta(minutes=5))
    return Processes.launched(timedelta(minutes=5))


def evaluate_all(folder, name, processes=None, **options):
    """Three cells of the digits, in five batches of which the last is shorter."""
    from budgetprune import tasks
    from budgetprune.evaluation.run import EvalConfig, evaluate
    from budgetprune.training import load_base

    config = EvalConfig(["none", "random", "fastv"], [8], samples=18, batch=4, latency_batch=2, images=2)
    return evaluate(*load_base(), tasks.build("digits"), f"{folder}/{name}", config, model_name="digits-llava",
                    processes=processes, **options)


def work(rank, folder):
    """Every way in which two processes evaluate or fail together; what each saw is saved."""
    from budgetprune.evaluation import run
    from budgetprune.evaluation.processes import ProcessLost

    processes, seen = meet(rank, folder), {}
    seen["gathered"], seen["shared"] = processes.gather(lambda: rank), processes.share(lambda: f"of {rank}")
    seen["records"] = [r.to_json() for r in evaluate_all(folder, "whole", processes)]
    seen["told"] = told = []
    generate = run.generate

    def fails(*arguments):
        if rank == 1 and told[-1:] != ["over"]:
            raise ValueError("an image of the second process cannot be read")
        return generate(*arguments)

    run.generate = fails
    for _ in range(2):  # once an error of the second process, then on from where it stopped
        try:
            evaluate_all(folder, "broken", processes, tell=lambda cell, done, total: None)
        except (ValueError, ProcessLost) as error:
            told.append(f"{type(error).__name__}: {error}")
        told.append("over")
    try:
        processes.share(no_disk)
    except (OSError, ProcessLost) as error:
        seen["main fails"] = f"{type(error).__name__}: {error}"
    with open(f"{folder}/said-{rank}", "w") as said, redirect_stdout(said):
        seen["swept"] = sweep(folder, "swept")  # which leaves the others when it is done
    torch.save(seen, f"{folder}/{rank}.pt")


def sweep(folder, name):
    """The command line, asking two tasks."""
    from budgetprune.cli import main

    options = Path(folder, "options").read_text().splitlines()
    given, sys.argv = sys.argv, ["budgetprune", "eval", *options, "--out", f"{folder}/{name}"]
    try:
        main()
    except SystemExit as leave:
        return leave.code
    finally:
        sys.argv = given


def no_disk():
    raise OSError("no space left")


def die(rank, folder, how):
    """The second process ends while the first waits for it, which must be told long before its patience ends."""
    from budgetprune.evaluation.processes import ProcessLost

    processes = meet(rank, folder)
    if rank == 1:
        processes.share(lambda: None)
        os.kill(os.getpid(), {"killed": signal.SIGKILL, "interrupted": signal.SIGINT}[how])
        time.sleep(30)
    processes.share(lambda: None)
    start = time.monotonic()
    try:
        processes.gather(lambda: None)
    except ProcessLost as error:
        print(f"lost after {time.monotonic() - start:.1f} s: {error}", flush=True)
        os._exit(3)
    os._exit(0)


if __name__ == "__main__":
    die(int(sys.argv[1]), sys.argv[2], sys.argv[3])
