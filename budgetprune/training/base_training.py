"""Trains a task's small LLaVA from nothing: its vision tower, then, with that frozen, projector and language model.

The stages are those of LLaVA (Liu et al., NeurIPS 2023). The tower is trained here, since no CLIP is as small. Half of
the second stage's images come with patches missing, since no language model of this size has read anything before: one
that always sees all patches rests its attention on empty ones, and fails when only the patches that matter are left.
"""

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetprune.tasks import Task
from budgetprune.tasks.drawn import Drawings, drawn

from .base_model import FEATURE_LAYER, FIRST, LOG, TEST_SEED, batch_inputs, build_base, held_out, user_base_dir
from .terminal import deferred_interrupts, progress_display

PEAK = 2e-3  # highest learning rate of both stages
FINAL_IMAGES = 1024
STATE = "resume.pt"


class TowerHeads(nn.Module):
    """What the tower is asked while it trains, dropped afterwards.

    Each patch, at the layer the features are taken from, names what it shows, such as its digit and its colour. CLS, at
    the last layer, names what is present: the last block then has to attend to what is in the image, as CLIP's does,
    and methods that rank patches by CLS attention find a signal.

    Args:
        width: channels of the tower.
        classes: {what a patch shows: how many kinds of it there are}.
    """

    def __init__(self, width: int, classes: dict[str, int]):
        super().__init__()
        self.kinds = list(classes.values())
        self.patch = nn.Linear(width, sum(self.kinds) + len(self.kinds))
        self.present = nn.Linear(width, sum(self.kinds))

    def forward(self, tower, drawings: Drawings) -> Tensor:
        """Loss of the tower's output `tower` (with all hidden states) for these images."""
        labels = self.patch_labels(drawings, tower.pooler_output.device)
        named = self.patch(tower.hidden_states[FEATURE_LAYER][:, 1:]).split([kinds + 1 for kinds in self.kinds], -1)
        present = torch.cat([F.one_hot(y, k + 1)[..., 1:].amax(1) for y, k in zip(labels, self.kinds)], -1)
        return (sum(F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(named, labels))
                + F.binary_cross_entropy_with_logits(self.present(tower.pooler_output), present.float()))

    @staticmethod
    def patch_labels(drawings, device):
        """What every patch shows + 1, 0 where there is nothing: int64 [B, N] of each class."""
        return tuple(torch.from_numpy(values).to(device) for values in drawings.patch_labels().values())

    @torch.no_grad()
    def accuracy(self, tower_model, task: Task, images: int = 256) -> float:
        """Share of held-out foreground patches whose first class is named rightly."""
        drawings, device = task.draw("test", images, TEST_SEED), self.patch.weight.device
        out = tower_model(torch.from_numpy(drawings.pixel_values()).to(device), output_hidden_states=True)
        named = self.patch(out.hidden_states[FEATURE_LAYER][:, 1:])[..., :1 + self.kinds[0]].argmax(-1)
        first = self.patch_labels(drawings, device)[0]
        return (named == first)[first > 0].float().mean().item()


def without_patches(inputs: dict[str, Tensor], patches: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """`inputs` of `batch_inputs`, N = `patches`, with some hidden: in half of the images a share drawn from U(0, 1)
    stays.

    The hidden ones are 0 in attention_mask, and position_ids say where the others stand, as after pruning.
    """
    batch, length = inputs["input_ids"].shape
    share = np.where(rng.random((batch, 1)) < 0.5, rng.random((batch, 1)), 1.0)
    mask = inputs["attention_mask"].clone()
    mask[:, 1:1 + patches] = torch.from_numpy(rng.random((batch, patches)) < share)
    positions = torch.arange(length, device=mask.device).expand(batch, -1)
    return inputs | {"attention_mask": mask, "position_ids": positions}


def llava_loss(model, drawings: Drawings, processor, rng: np.random.Generator) -> Tensor:
    """Language-model loss of the answers, all questions about an image in one conversation; the tower stays as is."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    inputs = batch_inputs(drawings, processor, learn_end=True, device=model.device)
    with torch.no_grad():
        tower = model.model.vision_tower(inputs.pop("pixel_values"), output_hidden_states=True)
    features = model.model.multi_modal_projector(tower.hidden_states[FEATURE_LAYER][:, 1:])
    encoded = BaseModelOutputWithPooling(pooler_output=list(features))
    inputs = without_patches(inputs, features.shape[1], rng)
    return model(**inputs, mm_encoder_outputs={"image": encoded}).loss


def one_cycle(step: int, steps: int, peak: float, rise: float = 0.1) -> float:
    """Learning rate at `step` of `steps`: a half cosine from peak / 25 up, then one down to 0 (Smith, 2018)."""
    done = (step + 0.5) / steps
    if done < rise:
        return peak * (1 + 24 * (1 - math.cos(math.pi * done / rise)) / 2) / 25
    return peak * (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2


def train_base(out_dir=None, vision_steps: int | None = None, steps: int | None = None, batch: int = 32, seed: int = 0,
               progress: bool = True, resume: bool = True, device="cpu", save_every: int = 100,
               log_every: int = 250, task: str | Task = FIRST) -> Path:
    """Trains the LLaVA of a task and writes it, its processor and train_log.jsonl to `out_dir`, which is returned.

    Images are a function of `seed` and the step alone, so a run that was broken off and goes on sees what the whole
    run would have seen. Interrupting (Ctrl-C) finishes the step and saves; the same call goes on from there. Every
    file is written beside its place and renamed, model.safetensors last: a directory with it is a finished one.

    Args:
        out_dir: default: where load_base looks first, in the user's cache.
        vision_steps: steps of the tower alone; default: the task's.
        steps: steps of projector and language model; default: the task's.
        batch: B, images per step, with all questions about each.
        seed: of the weights and of the images.
        progress: show a progress bar, or lines where the output is no terminal.
        resume: go on from a broken-off run in `out_dir`, if its settings are the same; else begin anew.
        save_every: steps between saved states.
        log_every: steps between rows of the log, each with an accuracy on held-out images.
        task: one that draws its images.
    """
    task = drawn(task)
    vision_steps, steps = (own if given is None else given
                           for given, own in zip((vision_steps, steps), task.base_steps))
    for name, value, least in (("vision_steps", vision_steps, 0), ("steps", steps, 0), ("batch", batch, 1),
                               ("save_every", save_every, 1), ("log_every", log_every, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    settings = {"task": task.label, "vision_steps": vision_steps, "steps": steps, "batch": batch, "seed": seed}
    out_dir = Path(out_dir) if out_dir is not None else user_base_dir(task.name)
    out_dir.mkdir(parents=True, exist_ok=True)
    run = _Run(task, settings, torch.device(device))
    if resume:
        run.load(out_dir / STATE)
    total = vision_steps + steps
    display = progress_display(f"{task.name} LLaVA", total, run.step, progress)
    with display as show, deferred_interrupts() as interrupted:
        while run.step < total:
            loss = run.advance()
            if run.step in (vision_steps, total) or run.step % log_every == 0:
                show(run.step, run.note(loss))
            if interrupted():
                run.save(out_dir / STATE)
                print(f"stopped at step {run.step} of {total}; the same call goes on from here", file=sys.stderr)
                raise KeyboardInterrupt
            if run.step % save_every == 0 or run.step == total:
                run.save(out_dir / STATE)
            show(run.step)
        show(run.step, run.finish())
    run.write(out_dir)
    (out_dir / STATE).unlink(missing_ok=True)
    return out_dir


class _Run:
    """Everything that changes while training; `step` counts both stages."""

    def __init__(self, task, settings, device):
        self.task, self.settings, self.device, self.step, self.seconds = task, settings, device, 0, 0.0
        self.model, self.processor = build_base(task, settings["seed"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            self.heads = TowerHeads(self.model.config.vision_config.hidden_size, task.drawings.classes)
        self.model.to(device).train()
        self.heads.to(device)
        self.optimizer = self.new_optimizer()
        self.log = [{"event": "start", **settings, "parameters": self.model.num_parameters(),
                     "torch": str(torch.__version__), "device": str(device), "threads": torch.get_num_threads()}]

    @property
    def in_vision(self):
        return self.step < self.settings["vision_steps"]

    def new_optimizer(self):
        tower = [*self.model.model.vision_tower.parameters(), *self.heads.parameters()]
        rest = [p for name, p in self.model.named_parameters() if "vision_tower" not in name]
        return torch.optim.AdamW(tower if self.in_vision else rest, weight_decay=0.01)

    def advance(self):
        """One step of whichever stage it is; returns the loss."""
        since, settings = time.monotonic(), self.settings
        drawings = self.task.draw("train", settings["batch"], settings["seed"], start=self.step * settings["batch"])
        if self.in_vision:
            rate = one_cycle(self.step, settings["vision_steps"], PEAK)
            pixels = torch.from_numpy(drawings.pixel_values()).to(self.device)
            loss = self.heads(self.model.model.vision_tower(pixels, output_hidden_states=True), drawings)
        else:
            done = self.step - settings["vision_steps"]
            rate = one_cycle(done, settings["steps"], PEAK)
            rng = np.random.default_rng([settings["seed"], self.step])
            loss = llava_loss(self.model, drawings, self.processor, rng)
        group, = self.optimizer.param_groups
        group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        was_vision = self.in_vision
        self.step += 1
        if was_vision and not self.in_vision:
            self.optimizer = self.new_optimizer()
        self.seconds += time.monotonic() - since
        return loss.item()

    def row(self, event, **values):
        self.log.append({"event": event, "step": self.step, **values, "seconds": round(self.seconds, 1),
                         "seed": self.settings["seed"], "torch": str(torch.__version__)})
        return self.log[-1]

    def note(self, loss):
        """Adds a row to the log. In the first stage there are no answers yet, only named patches."""
        named = round(self.heads.accuracy(self.model.model.vision_tower, self.task), 4)
        if self.step <= self.settings["vision_steps"]:
            return self.row("vision", loss=round(loss, 4), patch_accuracy=named)
        return self.row("llava", loss=round(loss, 4), patch_accuracy=named, **self.measured())

    def measured(self, *where):
        return {name: round(value, 4) for name, value in
                held_out(self.model, self.processor, self.task, *where).items()}

    def finish(self):
        return self.row("end", **self.measured(FINAL_IMAGES, TEST_SEED + 1),
                        questions=self.task.questions * FINAL_IMAGES)

    def state(self):
        return {"settings": self.settings, "step": self.step, "seconds": self.seconds, "log": self.log,
                "model": self.model.state_dict(), "heads": self.heads.state_dict(),
                "optimizer": self.optimizer.state_dict()}

    def save(self, path):
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        torch.save(self.state(), part)
        os.replace(part, path)

    def load(self, path):
        """Goes on from a state of a run with these settings; another's is left alone until the first save."""
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != self.settings:
            print(f"{path} is of another run ({state['settings']}); beginning anew", file=sys.stderr)
            return
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer = self.new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])

    def write(self, out_dir):
        """All files of the finished model; the weights are renamed last, so that they vouch for the others."""
        with tempfile.TemporaryDirectory(dir=out_dir, prefix=".writing-") as part:
            self.model.save_pretrained(part)
            self.processor.tokenizer.backend_tokenizer.no_padding()  # of `held_out`, which its file would keep
            self.processor.save_pretrained(part)
            (Path(part) / LOG).write_text("".join(json.dumps(row) + "\n" for row in self.log))
            for file in sorted(Path(part).iterdir(), key=lambda file: file.suffix == ".safetensors"):
                file.chmod(0o644)  # safetensors writes for the owner only, which an installed package must not be
                os.replace(file, out_dir / file.name)
