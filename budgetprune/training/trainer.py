"""The Trainer of runs on many devices: draws that belong to samples, two learning rates, and small checkpoints."""

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import save_fsdp_optimizer
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import SCHEDULER_NAME

from ..models.adapter import replace_file, save_pretrained
from ..models.placement import divided_like, whole
from .loop import PrunerTrainer, is_peft

WEIGHTS = "trained.pt"


class RunTrainer(PrunerTrainer):
    """Before train(), prepare() says what belongs to the run.

    Under FSDP2, too, a checkpoint holds what is trained, not the frozen model.
    """

    def prepare(self, config, skips, pruner, modules: list[str]) -> None:
        """pruner: what draws. modules: names of those that are trained with all their weights."""
        own = config.pruner
        self.config, self.skips, self.pruner = config, skips, pruner
        self.sampler = own.sampler()
        self.dtype = next(p.dtype for p in self.model.parameters() if not p.requires_grad)
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in modules and self.dtype != torch.float32:
                module.register_forward_pre_hook(_to_float32)
                module.register_forward_hook(_back)

    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs = dict(inputs)
        whole_step = self.config.pruner.batch_size
        places = [(position % whole_step, image) for position, image in inputs.pop("samples")]
        self.pruner.set_draws(self.sampler, self.state.global_step, places)
        self.skips.took(inputs.pop("skipped"))
        inputs = {name: value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
                  for name, value in inputs.items()}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs):
        return 0  # the Trainer's count takes nothing for frozen; cost.training knows better

    def create_optimizer(self, model=None):
        """The pruner's learning rate, and another for LoRA and projector."""
        if self.optimizer is None:
            named = [(name, p) for name, p in (model or self.model).named_parameters() if p.requires_grad]
            own, rest = self.config.pruner, [p for name, p in named if "budget_pruner" not in name]
            groups = [{"params": [p for name, p in named if "budget_pruner" in name], "lr": own.learning_rate}]
            groups += [{"params": rest, "lr": self.config.model_learning_rate}] if rest else []
            self.optimizer = torch.optim.AdamW(groups, lr=own.learning_rate, weight_decay=own.weight_decay)
        return self.optimizer

    def save_model(self, output_dir=None, _internal_call=False):
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        folder, weights = Path(output_dir or self.args.output_dir), trained_weights(self.model)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / WEIGHTS, lambda path: torch.save(weights, path))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if not self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_trained(self.model, torch.load(Path(resume_from_checkpoint) / WEIGHTS, weights_only=True))

    def _save_optimizer_and_scheduler(self, output_dir):
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        save_fsdp_optimizer(self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model,
                            output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)


def _to_float32(module, args):
    return tuple(value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for value in args)


def _back(module, args, output):
    return output.to(torch.bfloat16)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, whole, on the CPU; every process must ask, for each may hold a part."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: value.cpu() for name, value in whole(weights).items()}


@torch.no_grad()
def load_trained(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """ValueError: the weights are not those that this model trains."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys():
        raise ValueError(f"checkpoint must hold what is trained, {len(own)} weights, got {len(weights)} others")
    for name, value in divided_like(weights, own).items():
        own[name].copy_(value)


def keep_result(trainer, trained: nn.Module, out_dir: Path) -> None:
    """Writes pruner and adapter. All processes call it, the first writes."""
    with _gathered(trained):
        if is_peft(trained):
            model, lora = trained.get_base_model(), trainer.config.pruner.lora_rank
            if lora or trainer.config.train_projector:
                weights = trained_weights(trained)
                if trainer.args.should_save:
                    trained.save_pretrained(out_dir, state_dict=weights)
        else:
            model = trained
        save_pretrained(model, out_dir)


def _gathered(model):
    """Under DeepSpeed's ZeRO-3 weights are empty but here."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([p for p in model.parameters() if p.requires_grad])
