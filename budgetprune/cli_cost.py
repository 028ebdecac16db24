"""The command `budgetprune cost`: what a budget costs, by formula."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .cli_output import listed, whole


def cost(model: Annotated[str, typer.Argument(help="A known model, or a folder with config.json.")] = "llava-1.5-7b",
         keep: Annotated[str, typer.Option("--keep", "-k", help="Image tokens kept.")] = "288,144,64,32",
         method: Annotated[str, typer.Option("--method", "-m", help="Inside the decoder, such as fastv.")] = "",
         text: Annotated[int, typer.Option("--text", help="Text tokens of the prompt.")] = 64,
         crops: Annotated[int, typer.Option(help="Crops of the image (LLaVA-NeXT: up to 5).")] = 1):
    """What a budget costs: FLOPs and cache bytes of a model, by formula."""
    from .budget import TokenBudget
    from .checked import integer
    from .cost import table
    from .evaluation.shape import shape_of

    shape = shape_of(model)
    tokens = integer("crops", crops, 1) * shape.tokens_per_crop
    keeps = [whole("keep", k) for k in listed("keep", keep)]
    if max(keeps) > tokens:
        raise ValueError(f"keep must be at most {tokens}, the image tokens of {crops} crops, got {max(keeps)}")
    keeps = TokenBudget(keeps).counts([tokens] * len(keeps))  # as prune keeps them: one token at least
    stages = None
    if method:
        from .selectors import build

        chosen = build(method)
        if chosen.place != "llm":
            raise ValueError(f"method must act inside the decoder, {method} does not: its cost is that of keep alone")

        def stages(kept):
            return chosen.stages(tokens, kept, shape.decoder.layers)
    rows = Table("kept", "over layers", "sequence", "prefill GFLOPs", "of full", "decode GFLOPs/token", "KV cache MiB",
                 title=f"{model}, {tokens} image and {text} text tokens, 2 x multiply-adds, 16-bit cache")
    for row in table(shape, keeps, text, image_tokens_in=tokens, stages=stages):
        rows.add_row(str(row.keep), f"{row.layer_mean:.1f}", str(row.sequence), f"{row.prefill_flops / 1e9:,.3f}",
                     f"{row.prefill_share:.1%}", f"{row.decode_flops_per_token / 1e9:,.3f}",
                     f"{row.kv_bytes / 2**20:,.2f}")
    Console().print(rows)
