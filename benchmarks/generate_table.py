"""The table of bench_generate.py's entries: one row per model, batch, method and budget. Standard library only."""

HEAD = ["model", "B", "method", "K", "prefill, ms", "decode, ms/token", "peak, GiB", "prefill, TFLOP",
        "selection, of prefill", "speed-up", "by FLOPs", "of ideal"]


def is_generate(entry):
    return entry["extra_info"]["op"] == "generate"


def share(value):
    return "" if value is None else f"{value:.1%}"


def cells(info):
    keep = info["keep"] if info["place"] or info["provider"] != "stock transformers" else f"all {info['keep']}"
    front = [info["model"], str(info["B"]), info["provider"], str(keep)]
    size = [f"{info['peak_bytes'] / 2**30:.2f}", f"{info['flops'] / 1e12:.3f}"]
    if info["prefill_ms"] is None:  # run without timing
        return [*front, "", f"{info['decode_ms']:.2f}", *size, "", "", "", ""]
    return [*front, f"{info['prefill_ms']:,.1f}", f"{info['decode_ms']:,.2f}", *size, share(info["selection_share"]),
            f"{info['stock_prefill_ms'] / info['prefill_ms']:.2f}x", f"{info['stock_flops'] / info['flops']:.2f}x",
            share(info["ideal_share"])]


def generate_table(entries, date):
    """Markdown of the entries of one device; the stock model is every row's baseline."""
    entries = sorted(entries, key=lambda entry: (entry["extra_info"]["model"], entry["extra_info"]["B"]))
    info = entries[0]["extra_info"]
    gpu = info["on"] == "cuda"
    where = f"CUDA {info['cuda']}" if gpu else f"{info['threads']} threads"
    cut = f" Tower and decoder are cut to {info['layers']} layers of the real width." if info["layers"] else ""
    lines = [f"End to end with random weights in {info['dtype']}: {info['device']}, {where}, torch {info['torch']}, "
             f"commit {info['commit']}, {date}. {'Median' if gpu else 'Fastest'} round.{cut} The ideal speed-up is "
             "that of the FLOPs.", "", "| " + " | ".join(HEAD) + " |", "|---|--:|---|" + "--:|" * (len(HEAD) - 3)]
    return "\n".join(lines + ["| " + " | ".join(cells(entry["extra_info"])) + " |" for entry in entries])
