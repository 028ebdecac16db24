"""prune() and unprune(): a method enters a model by hooks, and leaves nothing behind."""

import types

import torch
from torch import Tensor, nn

from ..catalog import find
from ..checked import integer, one_of
from ..compress import Compressor
from ..plan import TokenPlan
from ..selectors import Selector
from ..selectors.pair import methods_of, pair_of
from . import attention, budget_rows, compressing, decoder
from .base import family_of
from .encode import encode, one_tensor_each, project
from .generation import forward_names, generate
from .placement import device_of, refuse_sharded
from .pruner import Pruner
from .turns import held


class Pruning:
    """A pruned model, as prune() returns it. Leaving its `with` block, or remove(), restores the model.

    model: the model. plan: the TokenPlan of the last call with images (one row per image; mid-LLM: per sample), or
    None where it had nothing to drop.
    stages: the TokenPlan of each stage inside the language model, as positions among the image tokens it was given.
    inside: of two methods that work together, the second's own Pruner; plan, index and valid are the first's.
    index: [B, L'] int64, the column of the caller's input_ids that each column of the logits belongs to,
    or None where nothing moved; valid: [B, L'] bool, False in padding.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def _pruner(self) -> Pruner:
        if "budget_pruner" not in self.model._modules:
            raise RuntimeError("model is not pruned any more")
        return self.model.budget_pruner

    @property
    def plan(self) -> TokenPlan | None:
        return self._pruner().plan

    @property
    def inside(self) -> Pruner | None:
        return self._pruner().inside

    @property
    def stages(self) -> tuple[TokenPlan, ...]:
        llm = self._pruner().llm
        return () if llm is None else llm.stages

    @property
    def index(self) -> Tensor | None:
        return self._pruner().index

    @property
    def valid(self) -> Tensor | None:
        return self._pruner().valid

    @property
    def selector(self) -> Selector:
        return self._pruner().selector

    def set_keep(self, keep) -> None:
        """Another budget for the calls to come."""
        pruners = [module for module in self._pruner().modules() if isinstance(module, Pruner)]
        inside = [pruner.inside for pruner in pruners]
        for pruner in pruners:  # under peft one for every adapter, and one for none
            if not any(pruner is other for other in inside):
                pruner.set_keep(keep)

    def draw_from(self, offset: int) -> None:
        """Where in the seed's stream the calls to come draw, in Philox counters; without it, behind the last call."""
        for module in self._pruner().modules():
            if isinstance(module, Pruner):
                module.offset = integer("offset", offset)

    def save_pretrained(self, folder) -> None:
        """Writes method, options, budget and trained weights to `folder`; budgetprune.from_pretrained reads them."""
        from .adapter import save_pretrained

        self._pruner()
        save_pretrained(self.model, folder)

    def remove(self) -> None:
        unprune(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if "budget_pruner" in self.model._modules:  # else an error of ours would stand before the block's own
            self.remove()


def prune(model: nn.Module, method, *, keep=None, train_keep: tuple[int, int] | None = None,
          seed: int = 0, positions: str | None = None, **options) -> Pruning:
    """Makes `model` spend fewer image tokens, in forward, backward and generate, until unprune(model).

    Args:
        model: a Hugging Face vision-language model, for example LlavaForConditionalGeneration.
        method: a name out of budgetprune.methods() or budgetprune.compressors(), or a Selector; or two that work
            together, "visionzip+fastv" or a pair of names or of Selectors, the first before the language model and the
            second inside it.
        keep: tokens kept: an int is a count, a float the fraction kept; a sequence has one per image (mid-LLM
            methods: per sample). 0 keeps one, N or more keeps all. None where the method chooses (PruMerge). A
            compressor takes one count or fraction, fixed from then on. For two methods a pair of these: the second's
            are of the tokens that the first leaves.
        train_keep: (K_min, K_max): in training each step draws its count uniformly; trainable methods only.
        seed: of methods that draw at random.
        positions: position ids of what stays: "original", with gaps, or "compact", numbered anew without; None: as the
            method's authors do. Models whose positions are places in the image (mrope) and methods inside the language
            model know only the original ones.
        options: the method's own, for example layer=3 for fastv.

    Returns:
        Pruning, which is also a context manager.

    Raises:
        TypeError: a model that is not supported, or an argument or option of another type.
        ValueError: an unknown method or option, a value out of its range, a model that cannot be pruned, or a model
            pruned already.
    """
    family = family_of(model)
    if "budget_pruner" in model._modules:
        raise ValueError("model is pruned already; unprune(model) first, or set_keep(...) for another budget")
    method, second = methods_of(method, options, find)
    if train_keep is not None and (method.fixed_count or not method.trainable):
        why = "has one count, which is keep" if method.fixed_count else "is not"
        raise ValueError(f"train_keep is for trainable methods, {method.name} {why}")
    before = family.before_projector and not method.after_projector
    _check_positions(positions, method, family, model)
    if getattr(method, "use_cls", False) and not (before and family.has_cls(model)):
        raise ValueError(f"use_cls must be False in {type(model).__name__}: no CLS passes its projector")
    width, patches, _ = family.features(model)
    if method.trainable:
        refuse_sharded(model, method.name)
    tower = {}
    if method.budget_in_tower:
        budget_rows.check(model, family)
        tower = {"tower": family.vision_tower(model), "state_dim": family.state_width(model)}
    inside = None if second is None else Pruner(second, pair_of(keep)[1], None, seed)
    pruner = Pruner(method, keep, train_keep, seed, inside, positions)
    # Behind the checks: what they refuse leaves a Selector as it was.
    if isinstance(method, Compressor):
        compressing.bind(method, model, family, keep if inside is None else pair_of(keep)[0])
    elif method.trainable:
        method.bind(width, patches, model.get_input_embeddings().embedding_dim, **tower)
    # Not to the model's dtype: a float16 controller cannot be trained, and a bfloat16 one is another one.
    pruner.to(device=device_of(family.tower_attention(model, -1))).train(model.training)

    handles = []
    try:
        if pruner.llm is not None:
            handles += decoder.install(model, pruner.llm, family)
        if method.budget_in_tower:  # first, so that our own hook of the projector gets patches only
            handles += budget_rows.add_hooks(model, family)
        if method.place == "vision":
            if before:
                handles.append(family.projector(model).register_forward_pre_hook(project))
            if method.needs & {"attention", "keys"}:
                attention.tap(family.tower_attention(model, method.tower_layer), attention.TOWER)
            layers = family.decoder(model).layers
            if pruner.positions(family) == "original":
                handles += [block.register_forward_pre_hook(decoder.forget_positions, with_kwargs=True)
                            for block in layers]
            if isinstance(method, Compressor):
                handles += compressing.install(method, model, family)
            elif method.trainable:
                for block in layers:
                    attention.tap(block.self_attn)
        handles.append(model.register_forward_pre_hook(_before_forward, with_kwargs=True))
    except Exception:
        _detach(model, family, handles)
        raise
    model.budgetprune_handles = handles  # on the model: peft copies the submodule, and copies would remove nothing
    model.budget_pruner = pruner
    model.generate = types.MethodType(generate, model)
    return Pruning(model)


def _check_positions(positions, method, family, model):
    if positions is not None:
        one_of("positions", positions, ("original", "compact"))
    why = f"in {type(model).__name__} they are places in the image" if family.mrope else \
        f"{method.name} drops tokens behind layers that have used theirs" if method.place == "llm" else None
    if positions == "compact" and why:
        raise ValueError(f"positions must be 'original' or None: {why}")


def unprune(model: nn.Module) -> nn.Module:
    """Restores a pruned model: bit-equal outputs, no hook, attribute or submodule of ours left. Returns it."""
    family = family_of(model)
    if "budget_pruner" not in model._modules:
        raise ValueError("model is not pruned")
    _detach(model, family, model.budgetprune_handles)
    del model.generate, model.budget_pruner, model.budgetprune_handles
    return model


def _detach(model, family, handles):
    for handle in handles:
        handle.remove()
    tower = [family.tower_attention(model, layer) for layer in range(len(family.blocks(model)))]
    for module in [*tower, *(block.self_attn for block in family.decoder(model).layers)]:
        attention.untap(module)


# Hooks are functions of the module, not closures: after copy.deepcopy they must act on the copy.

# Not for torch.compile: what is chosen here is read back from the device, and the sizes change with every prompt. It
# runs before anything of the model's own forward, which is compiled as it would be without it.
@torch.compiler.disable
def _before_forward(model, args, kwargs):
    kwargs = {**dict(zip(forward_names(type(model)), args)), **kwargs}
    pruner = model.budget_pruner
    if pruner.selector.place == "llm":
        return (), decoder.find_prompt(model, pruner, kwargs)
    family, given, own, gates = pruner.family(model), kwargs.get("mm_encoder_outputs"), None, False
    if not given and any(kwargs.get(pixels) is not None for pixels in family.media.values()):
        inputs = {name: value for name, value in kwargs.items() if value is not None}
        own = inputs.get("position_ids")  # those may say that sequences are packed
        learns = pruner.selector.trainable and not pruner.selector.fixed_count
        gates = learns and model.training and torch.is_grad_enabled()
        kwargs = encode(model, inputs, gates=gates)
        if "budgetprune_gate" in kwargs:
            return (), one_tensor_each(family, kwargs)
        given = kwargs["mm_encoder_outputs"]
    else:
        where, ids = kwargs.get("position_ids"), kwargs.get("input_ids")
        ours = given and ids is not None and where is not None
        if ours and kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None:
            # Gaps in position ids without mask and cache would be read as several packed sequences.
            kwargs["attention_mask"] = torch.ones_like(ids)
        if not given and not held(kwargs.get("past_key_values")):
            pruner.record(None)  # a prompt without images
    if given:
        kwargs = one_tensor_each(family, kwargs)
        if pruner.positions(family) == "original" and own is None and not family.mrope:
            kwargs["budgetprune_gaps"] = True
    # While the first method of two trains, the second waits.
    return (), kwargs if pruner.inside is None or gates else decoder.find_prompt(model, pruner.inside, kwargs)


__all__ = ["Pruner", "Pruning", "prune", "unprune"]
