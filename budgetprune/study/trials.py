"""Trials of a study: each trains one pruner under one setting and one seed, and evaluates it. Several run at a time."""

import json
import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..catalog import find
from ..checked import integer
from ..evaluation import read
from ..evaluation.record import FILE_NAME, Record
from ..training.config import TrainConfig

OWN = {field.name for field in fields(TrainConfig)} - {"options", "seed"}


@dataclass(frozen=True)
class Trial:
    """One training and its evaluation.

    variant: what its setting is called. config: the training, seed included. budgets: counts K that are measured.
    samples: questions of each cell, the same in every trial. task: what is asked. part: of a study of several, a folder
    of its own.
    """

    variant: str
    config: TrainConfig
    budgets: tuple[int, ...]
    samples: int = 768
    task: str = "digits"
    part: str = ""

    def folder(self, out: Path) -> Path:
        return Path(out) / self.part / self.task / self.variant / f"seed{self.config.seed}"

    def records(self, out: Path) -> list[Record]:
        """What is measured so far of this trial's own cells."""
        found = {r.keep: r for r in read(self.folder(out) / FILE_NAME) if r.samples == self.samples}
        return [found[keep] for keep in self.budgets if keep in found]


def with_setting(config: TrainConfig, setting: dict) -> TrainConfig:
    """`config` with other values; names are TrainConfig's fields, or k, and all else are options of the method.

    k: the one count K of every step, k_min and k_max alike, or a list out of which K is drawn, k_counts. k_counts alone
    are drawn from, too; k_sampling of another kind leaves a list's range. ValueError, TypeError: as TrainConfig and the
    method say, or k beside what it stands for.
    """
    setting = dict(setting)
    if "k" in setting:
        if twice := sorted({"k_min", "k_max", "k_counts", "k_sampling"} & setting.keys()):
            raise ValueError(f"k must come without {twice[0]}, which it sets, got both")
        k = setting.pop("k")
        fixed = {"k_sampling": "uniform", "k_min": integer("k", k, 1), "k_max": k} if not isinstance(k, list) else {}
        setting |= fixed or {"k_counts": k}
    if "k_counts" in setting or "k_sampling" in setting:
        kind = setting.setdefault("k_sampling", "list")
        if kind != "list":
            setting.setdefault("k_counts", ())
    own = {name: value for name, value in setting.items() if name in OWN}
    options = {name: value for name, value in setting.items() if name not in OWN}
    if "seed" in options:
        raise ValueError("seed must not be varied as a setting: each setting is run with every seed")
    return replace(config, **own, options={**config.options, **options})


def one_at_a_time(varied: dict[str, Sequence]) -> dict[str, dict]:
    """{variant: setting}: the baseline, where nothing is set, and each value of each name by itself."""
    settings: dict[str, dict] = {"baseline": {}}
    for name, values in varied.items():
        for value in values:
            settings[f"{name}={_text(value)}"] = {name: value}
    return settings


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def trials_of(settings: dict[str, dict], config: TrainConfig, seeds: int, budgets: Sequence[int], *,
              samples: int = 768, task: str = "digits", part: str = "") -> list[Trial]:
    """Every setting with every seed, the seeds of one setting apart, so that all settings are known early.

    budgets: counts K that are measured; of a method that is made for one count, that one.
    ValueError: a setting that is none, before any has begun.
    """
    integer("seeds", seeds, 1)
    integer("samples", samples, 1)
    counts = tuple(integer("budgets", keep, 1) for keep in budgets)
    made = {name: with_setting(config, setting) for name, setting in settings.items()}
    measured = {name: (one.k_max,) if find(one.method).fixed_count else counts for name, one in made.items()}
    return [Trial(name, replace(one, seed=config.seed + seed), measured[name], samples, task, part)
            for seed in range(seeds) for name, one in made.items()]


def run_trial(trial: Trial, out: Path) -> None:
    """Trains and evaluates; what an earlier call has done is taken over."""
    from ..demo import base_name, device, model_for
    from ..evaluation.run import EvalConfig, evaluate
    from ..tasks import build
    from ..training.task_pruner import train_task_pruner

    folder, method = trial.folder(out), trial.config.method
    train_task_pruner(folder / "pruner", trial.config, task=trial.task)
    config = EvalConfig([method], list(trial.budgets), {method: folder / "pruner"}, samples=trial.samples,
                        latency_batch=0, images=0)
    model, processor = model_for(trial.task, None)
    evaluate(model.to(device()), processor, build(trial.task), folder, config, model_name=base_name(trial.task))


def run_trials(trials: Sequence[Trial], out, *, workers: int | None = None,
               tell: Callable[[int, int, str], None] | None = None) -> None:
    """Runs what is not measured yet, `workers` trials at a time, each with its share of the cores.

    workers: default one for each core, or one where there is a GPU; 0: one trial after the other in this process, whose
        errors are those of a trial. tell: called with (done, total, last variant).
    Interrupted (Ctrl-C), all save what they have; the same call goes on from there.

    ValueError: a trial's folder holds another training, or a count is above the model's. RuntimeError: a trial failed;
    its own error is part of the text. The others are saved.
    """
    import torch

    out, tell = Path(out), tell or (lambda done, total, name: None)
    cores = os.cpu_count() or 1
    workers = integer("workers", (1 if torch.cuda.is_available() else cores) if workers is None else workers)
    for trial in trials:
        if (written := trial.folder(out) / "pruner" / "train_config.json").is_file():
            if TrainConfig.read(written) != trial.config:
                raise ValueError(f"{written} is of a run with another configuration; choose another folder with out")
    waiting = [trial for trial in trials if len(trial.records(out)) < len(set(trial.budgets))]
    tell(len(trials) - len(waiting), len(trials), "")
    if not waiting:
        return
    _refuse_more_than_there_is(waiting)
    if not workers:
        for number, trial in enumerate(waiting, len(trials) - len(waiting) + 1):
            run_trial(trial, out)
            tell(number, len(trials), trial.variant)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for trial in [*waiting, *[None] * workers]:
        todo.put(trial)
    team = [context.Process(target=_work, args=(todo, done, out, max(1, cores // workers)), daemon=True)
            for _ in range(min(workers, len(waiting)))]
    for process in team:
        process.start()
    finished = len(trials) - len(waiting)
    try:
        while finished < len(trials):
            try:
                variant, error = done.get(timeout=1)
            except queue.Empty:
                if any(process.exitcode for process in team):
                    raise RuntimeError(f"a worker was killed, exit codes {[p.exitcode for p in team]}; "
                                       "the same call goes on") from None
                continue
            if error:
                raise RuntimeError(f"trial {variant} failed:\n{error}")
            finished += 1
            tell(finished, len(trials), variant)
    finally:
        for process in team:
            if process.is_alive() and finished < len(trials):
                os.kill(process.pid, signal.SIGINT)
        todo.cancel_join_thread()  # what nobody will read must not hold up the end
        for process in team:
            process.join()


def _refuse_more_than_there_is(trials):
    """ValueError: a count above the image tokens of a task's model, which a trial would find after its training."""
    from ..demo import model_for
    from ..models.base import family_of

    for task in dict.fromkeys(trial.task for trial in trials):
        model, _ = model_for(task, None)
        tokens = family_of(model).features(model)[1]
        most = max(max(trial.budgets) for trial in trials if trial.task == task)
        if most > tokens:
            raise ValueError(f"budgets must be in [1, N={tokens}] of the {task} model, got {most}")


def _work(todo, done, out, threads):
    import torch

    os.setsid()  # Ctrl-C of the terminal comes to the parent alone, which hands it on once
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    try:
        while parent.is_alive():  # a parent that was killed can call nobody off
            trial = todo.get()
            if trial is None:
                return
            try:
                run_trial(trial, out)
            except Exception:
                done.put((trial.variant, traceback.format_exc()))
                return
            done.put((trial.variant, None))
    except KeyboardInterrupt:
        return
