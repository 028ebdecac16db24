"""The folder of a training run: what is written there first, what goes on from there, and what seals it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PrinterCallback

from ..models.adapter import replace_file
from ..models.tuned import LOG, TUNED
from ..models.tuned import RUN as CONFIG

RESULTS = ("budgetprune_*", "adapter_*", "depth_*", TUNED)
log = logging.getLogger(__name__)


def is_finished(out_dir, config) -> bool:
    """Whether `out_dir` holds the result of a whole run with this configuration. ValueError: of another kind of run."""
    out_dir = Path(out_dir)
    return (out_dir / LOG).is_file() and type(config).read(out_dir / CONFIG) == config


def refuse_another(written: Path, same: Callable[[Path], bool]) -> None:
    """ValueError: `written`, a configuration, is there and is not the same."""
    if written.is_file() and not same(written):
        raise ValueError(f"{written.parent} holds a run with another configuration ({written}); choose another folder, "
                         "or begin anew with resume=False (--no-resume)")


def begin(out_dir: Path, config, resume: bool) -> None:
    """Makes `out_dir` ready: the same run goes on, an unwanted one makes way, another one is refused."""
    out_dir.mkdir(parents=True, exist_ok=True)
    if resume:
        refuse_another(out_dir / CONFIG, lambda path: type(config).read(path) == config)
    else:
        shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
    # The log is the seal of a finished run, so it goes first here and is written last.
    for old in [out_dir / LOG, *(path for result in RESULTS for path in out_dir.glob(result))]:
        old.unlink(missing_ok=True)
    # At once, because every process of a run begins it, and one may read what another writes.
    replace_file(out_dir / CONFIG, lambda path: path.write_text(config.to_json()))


def last_checkpoint(out_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the Trainer writes trainer_state.json last."""
    whole = [path.parent for path in (out_dir / "checkpoints").glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def go_on(trainer, report, out_dir: Path) -> None:
    """Trains from the run's last whole checkpoint to its end. KeyboardInterrupt: it was stopped, and can go on."""
    checkpoint = last_checkpoint(out_dir)
    if checkpoint and trainer.args.should_save:
        log.info("resuming from %s", checkpoint)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if report.stopped:
        raise KeyboardInterrupt(f"stopped after step {trainer.state.global_step} of {trainer.args.max_steps}; "
                                "the same command goes on from there")


def seal(trainer, out_dir: Path) -> None:
    """Writes the log, when the result is there, then removes the checkpoints."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    replace_file(out_dir / LOG, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)))
    shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
