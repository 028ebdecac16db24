"""The command `budgetprune cost`: what a budget costs by formula, and how far a run's milliseconds followed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .cli_output import listed, roofline_note, whole


def pixels(text: str) -> tuple[int, int]:
    """(height, width) of WIDTHxHEIGHT."""
    parts = text.lower().split("x")
    if len(parts) != 2:
        raise ValueError(f"image must be WIDTHxHEIGHT in pixels, such as 1024x768, got {text!r}")
    width, height = (whole("image", part) for part in parts)
    return height, width


def columns(*names: str, title: str) -> Table:
    """A table whose figures are never cut off, however narrow the terminal is."""
    table = Table(title=title, padding=(0, 0) if len(names) > 7 else (0, 1))
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def cost(model: Annotated[str | None, typer.Argument(help="A known model, or a folder with config.json; default: "
                                                     "llava-1.5-7b.")] = None,
         keep: Annotated[str | None, typer.Option("--keep", "-k", help="Image tokens kept; default: a half, a quarter, "
                                                  "a ninth and an eighteenth.")] = None,
         method: Annotated[str, typer.Option("--method", "-m", help="Inside the decoder, or a compressor.")] = "",
         text: Annotated[int, typer.Option("--text", help="Text tokens of the prompt.")] = 64,
         image: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels: gives crops and tokens.")] = None,
         crops: Annotated[int, typer.Option(help="Crops of the image, where image does not say it.")] = 1,
         batch: Annotated[int, typer.Option(help="Prompts at a time; FLOPs and bytes are of all.")] = 1,
         hardware: Annotated[str | None, typer.Option(help="Such as h100, or this: roofline milliseconds.")] = None,
         run: Annotated[Path | None, typer.Option(help="A folder with records.jsonl: its milliseconds against what "
                                                  "FLOPs promise; with model and hardware, rooflines too.")] = None):
    """What a budget costs: FLOPs, cache bytes and roofline milliseconds of a model, by formula."""
    from .evaluation.shape import shape_of
    from .evaluation.this_machine import device_of

    on = None if hardware is None else device_of(hardware)
    shown = Console()
    if run is not None:
        from .evaluation.predicted import by_method, of_run

        if (model is None) != (on is None):
            raise ValueError("hardware must come with model, and model with hardware, where run is given")
        rows = of_run(run, None if model is None else shape_of(model), on)
        shown.print(_followed(rows, run, on))
        for one in by_method(rows):
            shown.print(f"{one.method}: {one.mean:.2f} times the share of the full model's time that its share of the "
                        f"FLOPs is ({one.least:.2f} to {one.most:.2f}, {one.cells} cells)", highlight=False)
        return
    name = model or "llava-1.5-7b"
    shown.print(_budgets(name, shape_of(name), keep, method, text, image, crops, batch, on))
    for note in shape_of(name).notes:
        shown.print(f"assumed: {note}", highlight=False)
    if on is not None:
        shown.print(roofline_note(on), highlight=False)


def _budgets(name, shape, keep, method, text, image, crops, batch, on):
    from .budget import TokenBudget
    from .catalog import build
    from .checked import integer
    from .cost import Seen, see, table

    if image is not None:
        seen = see(shape, *pixels(image))
    elif shape.packed:
        raise ValueError(f"image must be given as WIDTHxHEIGHT: {name} takes images of any size")
    else:
        seen = Seen(integer("crops", crops, 1) * shape.tokens_per_crop, crops, None)
    tokens = seen.tokens
    if keep is None:
        keeps = sorted({max(1, tokens // part) for part in (2, 4, 9, 18)}, reverse=True)
        if method and (chosen := build(method)).fixed_count and shape.projector.selects_before:
            allowed = chosen.counts_in(shape)
            keeps = sorted({min(allowed, key=lambda k: abs(k - usual)) for usual in keeps}, reverse=True)
    else:
        keeps = [whole("keep", k) for k in listed("keep", keep)]
    if max(keeps) > tokens:
        raise ValueError(f"keep must be at most {tokens}, the image tokens of "
                         f"{f'{crops} crops' if image is None else image}, got {max(keeps)}")
    keeps = TokenBudget(keeps).counts([tokens] * len(keeps))  # as prune keeps them: one token at least
    stages, own = None, dict.fromkeys(keeps, 0)
    if method:
        chosen = build(method)
        if chosen.fixed_count:
            from .compress import priced

            if not shape.projector.selects_before:
                raise ValueError(f"{method} stands between tower and projector, where {name} has no place for it")
            if seen.crops not in (None, 1):
                raise ValueError(f"crops must be 1 with {method}, which compresses one grid of patches, got "
                                 f"{seen.crops}")
            own = {kept: priced(build(method), shape, kept, text) * batch for kept in keeps}
        elif chosen.place != "llm":
            raise ValueError(f"method must act inside the decoder, {method} does not: its cost is that of keep alone")
        else:
            def stages(kept):
                return chosen.stages(tokens, kept, shape.decoder.layers)
    times = ["roofline prefill ms", "roofline decode ms /token"] if on else []
    wide = 2 if on is None else on.bytes_per_value
    many = "" if batch == 1 else f", {batch} prompts"
    title = f"{name}, {tokens} image and {text} text tokens{many}, 2 x multiply-adds, {8 * wide}-bit cache"
    rows = columns("kept", "over layers", "sequence", "prefill GFLOPs", "of full", "decode GFLOPs /token",
                   "KV cache MiB", *times, title=title)
    for row in table(shape, keeps, text, image_tokens_in=tokens, stages=stages, crops=seen.crops, grids=seen.grids,
                     batch=batch, bytes_per_value=wide, on=on):
        flops = row.prefill_flops + own[row.keep]
        share = row.prefill_share * flops / row.prefill_flops
        rows.add_row(str(row.keep), f"{row.layer_mean:.1f}", str(row.sequence), _giga(flops), f"{share:.1%}",
                     f"{_giga(row.decode_flops_per_token)}",
                     f"{row.kv_bytes / 2**20:,.2f}",
                     *([f"{row.prefill_roofline_ms:,.2f}", f"{row.decode_roofline_ms:,.2f}"] if on else []))
    return rows


def _giga(flops):
    """Three decimals of small models, one of large ones."""
    return f"{flops / 1e9:,.1f}" if flops >= 1e11 else f"{flops / 1e9:.3f}"


def _followed(rows, run, on):
    times = [f"roofline on {on.name}, of full", "measured / roofline"] if on else []
    shown = columns("task", "method", "kept", "prefill ms", "of full", "FLOPs, of full", "measured / FLOPs", *times,
                    title=f"{run}: milliseconds measured, FLOPs by formula")
    for row in rows:
        more = ["", ""] if row.roofline_ratio is None else [f"{row.roofline_share:.1%}", f"{row.roofline_ratio:.2f}"]
        shown.add_row(row.task, row.method, str(row.keep), f"{row.measured_ms:,.2f}", f"{row.measured_share:.1%}",
                      f"{row.flops_share:.1%}", f"{row.flops_ratio:.2f}", *(more if on else []))
    return shown
