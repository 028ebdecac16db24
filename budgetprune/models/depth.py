"""prune_depth(): a language model that runs fewer of its layers, by a budget and by what the prompt says."""

import torch
from torch import nn

from ..checked import LARGEST_SEED, integer
from ..pruners.depth import DepthScheduler, scheduler
from . import depth_layers, depth_prompt
from .base import family_of
from .depth_pruner import DepthPruner
from .depth_state import DepthPlan
from .placement import device_of, refuse_sharded


class DepthPruning:
    """A model that skips layers, as prune_depth() returns it. Leaving its `with` block, or remove(), restores it."""

    def __init__(self, model: nn.Module):
        self.model = model

    def _pruner(self) -> DepthPruner:
        if "budget_depth" not in self.model._modules:
            raise RuntimeError("model's depth is not pruned any more")
        return self.model.budget_depth

    @property
    def plan(self) -> DepthPlan | None:
        """What ran for the last prompt."""
        return self._pruner().last_plan()

    @property
    def scheduler(self) -> DepthScheduler:
        return self._pruner().scheduler

    def set_budget(self, budget) -> None:
        """Another budget for the prompts to come."""
        self._pruner().set_budget(budget)

    def save_pretrained(self, folder) -> None:
        """Writes method, options, budget and weights to `folder`, where a vision pruner may be saved beside them;
        budgetprune.depth_from_pretrained reads them."""
        from .depth_adapter import save_depth

        self._pruner()
        save_depth(self.model, folder)

    def remove(self) -> None:
        unprune_depth(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if "budget_depth" in self.model._modules:  # else an error of ours would stand before the block's own
            self.remove()


def prune_depth(model: nn.Module, method: str = "adallava", *, budget, train_budget: tuple[int, int] | None = None,
                seed: int = 0, **options) -> DepthPruning:
    """Makes the language model of `model` run fewer of its layers, in forward, backward and generate, until
    unprune_depth(model). prune() may act on its image tokens at the same time, before the language model.

    A latency token, which knows the budget, is put behind each prompt (with labels: before its first answer), and its
    hidden state after the first layers decides, once per prompt, which of the others run. At inference a layer that
    runs for no row does nothing and caches nothing; one that runs for some rows is given those alone. Columns, logits,
    labels and masks are the caller's own throughout. Caches must be dynamic.

    Args:
        model: a Hugging Face vision-language model that prune() knows; one with causal attention.
        method: "adallava", see pruners.AdaLLaVA; it has to be trained.
        budget: layers that run, those of the prefix included: an int, or a float, the fraction of all; one per row of
            the prompt as a sequence. In form "heads" units of `rank` heads and as many groups of neurons.
        train_budget: (least, most): in training each row of each step draws its own.
        seed: of the initial weights.
        options: form "layers" or "heads", prefix, rank, tau, estimator, answer_from.

    Returns:
        DepthPruning, which is also a context manager.

    Raises:
        TypeError: a model that is not supported, or an argument of another type.
        ValueError: an unknown method, a value out of its range, or a model whose depth is pruned already.
    """
    family = family_of(model)
    if "budget_depth" in model._modules:
        raise ValueError("model's depth is pruned already; unprune_depth(model) first, or set_budget(...)")
    refuse_prefix_lm(model)
    text, layers = model.config.get_text_config(), family.decoder(model).layers
    refuse_sharded(model, method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer("seed", seed, most=LARGEST_SEED))
        chosen = scheduler(method)(text.hidden_size, len(layers), text.num_attention_heads, **options)
    pruner = DepthPruner(chosen, budget, train_budget, seed)
    pruner.to(device=device_of(layers[chosen.prefix])).train(model.training)

    handles = []
    try:
        for layer in layers[chosen.prefix:]:
            handles += depth_layers.install(layer, chosen.form == "heads")
        handles.append(layers[chosen.prefix].register_forward_pre_hook(depth_prompt.decide, with_kwargs=True))
        handles.append(family.decoder(model).register_forward_pre_hook(depth_prompt.enter, with_kwargs=True))
        handles.append(family.decoder(model).register_forward_hook(depth_prompt.leave, with_kwargs=True))
        handles.append(model.register_forward_pre_hook(depth_prompt.ask, with_kwargs=True))
    except Exception:
        _detach(layers, handles)
        raise
    model.budgetprune_depth_handles = handles
    model.budget_depth = pruner
    return DepthPruning(model)


def refuse_prefix_lm(model: nn.Module) -> None:
    """ValueError: a model in which the latency token would be seen by all that stands before it."""
    if family_of(model).prefix_lm:
        raise ValueError(f"model must have causal attention, in which a token behind the prompt changes none of it; "
                         f"the prompt's tokens of {type(model).__name__} see each other in both directions")


def unprune_depth(model: nn.Module) -> nn.Module:
    """Restores a model: bit-equal outputs, no hook, attribute or submodule of ours left. Returns it."""
    family = family_of(model)
    if "budget_depth" not in model._modules:
        raise ValueError("model's depth is not pruned")
    _detach(family.decoder(model).layers, model.budgetprune_depth_handles)
    del model.budget_depth, model.budgetprune_depth_handles
    return model


def _detach(layers, handles):
    for handle in handles:
        handle.remove()
    for layer in layers:
        depth_layers.uninstall(layer)
