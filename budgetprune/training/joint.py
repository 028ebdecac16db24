"""Trains what spares tokens and what spares layers in one loop, on the language-model loss alone."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import set_seed

from ..cost import VlmShape
from ..models import DepthPruning, Pruning, depth_from_pretrained, from_pretrained, prune, prune_depth
from ..models.adapter import replace_file
from ..models.base import family_of
from ..models.tuned import fitting, inject_lora
from .joint_config import JointConfig
from .loop import PrunerTrainer, Report, arguments_of
from .run_folder import CONFIG, LOG, TUNED, begin, go_on, is_finished, seal
from .terminal import deferred_interrupts

OURS = ("budget_pruner.", "budget_depth.")


class JointTrainer(PrunerTrainer):
    """Saves and restores what is trained and nothing else; the model's own weights have their own learning rate."""

    model_learning_rate = 0.0

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            ours, others = [], []
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    (ours if name.startswith(OURS) else others).append(parameter)
            groups = [{"params": ours}, {"params": others, "lr": self.model_learning_rate}]
            self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]],
                                               lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / TUNED, trained_weights(self.accelerator.unwrap_model(self.model)))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_trained(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint) / TUNED)


class JointReport(Report):
    """Draws the pair of every step."""

    def __init__(self, model, draw, tell, noise_steps, interrupted):
        super().__init__(tell, None, noise_steps, interrupted)
        self.model, self.draw = model, draw

    def on_step_begin(self, args, state, control, **kwargs):
        spend(self.model, self.draw(state.global_step))
        for name in ("budget_pruner", "budget_depth"):
            if name in self.model._modules:
                getattr(self.model, name).set_noise(state.global_step < self.noise_steps)


def spend(model: nn.Module, pair) -> None:
    """Sets a pair (JointChoice) as the budgets of a model whose tokens, layers or both are pruned."""
    if "budget_pruner" in model._modules:
        model.budget_pruner.set_keep(pair.keep)
    if "budget_depth" in model._modules:
        model.budget_depth.set_budget(model.budget_depth.scheduler.of_layers(pair.layers))


def attach(model: nn.Module, config: JointConfig) -> tuple[Pruning | None, DepthPruning | None]:
    """Prunes tokens and layers of `model`, which keeps everything at first, and opens what `config` trains."""
    set_seed(config.seed)
    family = family_of(model)
    model.requires_grad_(False)
    if config.tune == "lora":  # first: what is hooked must be the layers that there are in the end
        inject_lora(model, config.lora_rank)
    elif config.tune == "full":
        parts = [family.decoder(model), model.get_output_embeddings()]
        parts += [family.projector(model)] if family.before_projector else []
        for part in parts:
            part.requires_grad_(True)
    return pruned(model, config)


def pruned(model: nn.Module, config: JointConfig) -> tuple[Pruning | None, DepthPruning | None]:
    tokens = config.method and prune(model, config.method, keep=1.0, **config.options)
    try:
        depth = config.depth and prune_depth(model, config.depth, budget=1.0, seed=config.seed, **config.depth_options)
    except BaseException:
        if tokens:
            tokens.remove()
        raise
    return tokens, depth


def priced(model: nn.Module, config: JointConfig) -> tuple[VlmShape, int]:
    """(shape, layers that always run) of a model that can be trained so; leaves it as it is. ValueError: it cannot."""
    if family_of(model).features(model)[1] is None:
        raise ValueError(f"model must have as many tokens for every image, or one share of FLOPs is another K for "
                         f"each: {type(model).__name__} has not")
    shape = VlmShape.from_config(model.config)
    tokens, depth = pruned(model, config)
    prefix = depth.scheduler.prefix if depth else shape.decoder.layers
    for pruning in (depth, tokens):
        if pruning:
            pruning.remove()
    try:
        config.pairs(shape, config.share_min, prefix)
    except ValueError as error:
        raise ValueError(f"share_min must be larger: {error}") from error
    return shape, prefix


def train_joint(model: nn.Module, dataset, out_dir, config: JointConfig, *, resume: bool = True,
                tell: Callable[[int, dict], None] | None = None) -> tuple[Pruning | None, DepthPruning | None]:
    """Trains what `config` names for `model`, and leaves the model pruned with it, all tokens and layers kept.

    Gates act inside attention (tokens) and on layers; the loss is the language model's alone, since every step keeps
    exactly what its budget pays for. Interrupted or killed, the same call goes on from the last whole checkpoint with
    the same result; finished, it only loads. LoRA and tuned weights change `model` itself.

    Args:
        model: one with as many tokens for every image, as LLaVA-1.5 has, so that a budget of FLOPs is known before.
        dataset: map-style; items are forward arguments with labels, one answer each, item i always the same.
        out_dir: for the pruners' files, tuned_model.safetensors, train_config.json, train_log.jsonl.
        resume: False begins anew. tell: called with (step, values).

    ValueError: `out_dir` holds a run with another configuration, or the budgets do not pay for anything.
    """
    out_dir = Path(out_dir)
    if resume and is_finished(out_dir, config):
        return joint_from_pretrained(model, out_dir)
    shape, prefix = priced(model, config)
    begin(out_dir, config, resume)
    tokens, depth = attach(model, config)
    arguments = arguments_of(config, out_dir)
    with deferred_interrupts() as interrupted:
        report = JointReport(model, lambda step: config.drawn(shape, step, prefix), tell, config.noise * config.steps,
                             interrupted)
        trainer = JointTrainer(model, arguments, train_dataset=dataset, callbacks=[report],
                               data_collator=getattr(dataset, "collate", None))
        trainer.model_learning_rate = config.model_learning_rate
        try:
            go_on(trainer, report, out_dir)
        finally:
            model.eval()
    keep_everything(tokens, depth)
    finish(trainer, tokens, depth, out_dir)
    return tokens, depth


def keep_everything(tokens, depth) -> None:
    for pruning, everything in ((tokens, "set_keep"), (depth, "set_budget")):
        if pruning is not None:
            getattr(pruning, everything)(1.0)


def joint_from_pretrained(model: nn.Module, folder) -> tuple[Pruning | None, DepthPruning | None]:
    """A model as train_joint left it in `folder`: its tuned weights or LoRA, and what spares tokens and layers.

    FileNotFoundError: no finished run there. ValueError: it is of another model.
    """
    folder = Path(folder)
    if not (folder / LOG).is_file():
        raise FileNotFoundError(f"no finished run of tokens and layers in {folder}")
    config = JointConfig.read(folder / CONFIG)
    for pruning in attach(model, config):
        if pruning:
            pruning.remove()
    if config.tune != "frozen":
        load_trained(model, folder / TUNED)
    model.requires_grad_(False).eval()
    return (config.method and from_pretrained(model, folder), config.depth and depth_from_pretrained(model, folder))


def trained_weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def load_trained(model: nn.Module, path: Path) -> None:
    """Reads weights that were trained into the model. ValueError: it has others."""
    weights, own = fitting(model, path), dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def write(path: Path, weights: dict) -> None:
    from safetensors.torch import save_file

    replace_file(path, lambda aside: save_file(weights, aside, {"format": "pt"}))


def finish(trainer, tokens, depth, out_dir: Path) -> None:
    """Writes the result and seals it."""
    for pruning in (tokens, depth):
        if pruning is not None:
            pruning.save_pretrained(out_dir)
    tuned = {name: value for name, value in trained_weights(trainer.model).items() if not name.startswith(OURS)}
    if tuned:
        write(out_dir / TUNED, tuned)
    seal(trainer, out_dir)
