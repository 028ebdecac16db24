"""The vision side of a pruned model as one graph: torch.export, and from it AOTInductor or any other runtime."""

import torch
from torch import Tensor, nn

from .base import family_of


class Vision(nn.Module):
    """Tower, method and projector of a pruned model: pixel_values [B, 3, H, W] to what its decoder gets."""

    def __init__(self, model: nn.Module):
        super().__init__()
        decoder = family_of(model).decoder(model)
        self.parts = nn.ModuleList([part for part in model.base_model.children() if part is not decoder])
        self.pruner = model.budget_pruner
        self.__dict__["model"] = model  # no submodule: the weights of the decoder stay outside

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        family, inputs = family_of(self.model), {"pixel_values": pixel_values}
        call = self.pruner.encoding(family)(self.model, family, inputs, gates=False)
        outputs = call.finish({"image": call.run("image")})
        return torch.stack(list(outputs["image"].pooler_output)), call.plan.kept


@torch.no_grad()
def export_vision(model: nn.Module, pixel_values: Tensor) -> torch.export.ExportedProgram:
    """Exports what a pruned model does with its images: tower, selection at its budget, projector.

    The program takes pixel_values of this very shape, and gives (features [B, K, D], kept [B, K'] int32): what the
    decoder gets for its K image tokens, CLS first where it gets that, and the patches that stayed, as in TokenPlan.
    A budget set later does not reach it.

    Args:
        model: pruned before its projector, with one exact budget for all images, in eval mode.
        pixel_values: [B, 3, H, W], an example.

    ValueError: the model is not pruned or in training mode, or its method cannot be one graph with fixed shapes.
    """
    pruner = getattr(model, "budget_pruner", None)
    if pruner is None:
        raise ValueError("model must be pruned to be exported: budgetprune.prune(model, method, keep=...)")
    if model.training:
        raise ValueError("model must be in eval mode to be exported, got training mode; call model.eval()")
    method = pruner.selector
    for field, why in (("key", "draws anew in every call"), ("text", "looks at the prompt")):
        if field in method.needs:
            raise ValueError(f"method must depend on the images alone to be exported, got {method.name}, which {why}")
    if method.place != "vision" or method.after_projector or not family_of(model).before_projector:
        raise ValueError("model must be pruned between its tower and its projector to be exported, got "
                         f"{type(model).__name__} with {method.name}")
    if pruner.budget is None or isinstance(pruner.budget.keep, tuple):
        got = "the method's own count" if pruner.budget is None else pruner.budget.keep
        raise ValueError(f"keep must be one count or fraction for all images to be exported, got {got}")
    return torch.export.export(Vision(model).eval(), (pixel_values,))
