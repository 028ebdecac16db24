"""The estimates of docs/cluster.md: memory and time of training a pruner, by GPU count.

    python benchmarks/cluster_table.py     rewrite them
"""

import re
from pathlib import Path

from budgetprune.cost import KNOWN, parameters
from budgetprune.cost.hardware import DEVICES
from budgetprune.cost.training import ASSUMED_MFU, OVERHEAD, training_cost
from budgetprune.training.trainee import trainee

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cluster.md"
SAMPLES, BATCH, TEXT = 665_298, 128, 200  # rows of llava_v1_5_mix665k.json; tokens of questions and answers, assumed
RUNS = [("llava-1.5-7b", {}), ("llava-1.5-7b", {"lora_rank": 64, "projector": True}), ("llava-1.5-13b", {})]
SPREAD = [(1, "ddp"), (8, "ddp"), (8, "zero2"), (8, "zero3"), (8, "fsdp"), (32, "fsdp")]
# What can be trained: method, its options, and what is trained beside it.
TRAINED = [("adaptive", {}, {}), ("adaptive", {"fusion": "encoder"}, {}), ("adaptive_query", {}, {}),
           ("quecc", {"keep": 36}, {}), ("resampler", {"keep": 36}, {}), ("pooling_projector", {"keep": 36}, {}),
           ("adaptive", {}, {"projector": True}), ("adaptive", {}, {"lora_rank": 64}),
           ("quecc", {"keep": 36}, {"lora_rank": 64})]
MICRO = 4


def costs(model: str, gpu: str, asked, **how):
    return training_cost(KNOWN[model], gpu, batch=BATCH, micro_batch=MICRO, text_tokens=TEXT, trainee=asked, **how)


def figures(cost, gpu: str) -> list[str]:
    fits = cost.memory_bytes <= DEVICES[gpu].memory_bytes
    return [f"{cost.weights / 1e9:.1f}", f"{(cost.gradients + cost.optimizer) / 1e9:.2f}",
            f"{(cost.activations + cost.logits) / 1e9:.1f}", f"{cost.gathered / 1e9:.1f}",
            f"{cost.memory_bytes / 1e9:.1f}" + ("" if fits else " (does not fit)"), f"{cost.step_seconds:.1f}",
            f"{cost.hours(SAMPLES, BATCH):.1f}"]


def spread_rows(gpu: str) -> list[list[str]]:
    """The pruner alone, or with LoRA and projector, on so many GPUs in each way."""
    found = []
    for model, beside in RUNS:
        asked = trainee("adaptive", KNOWN[model], text_tokens=TEXT)
        for gpus, strategy in SPREAD:
            cost = costs(model, gpu, asked, gpus=gpus, strategy=strategy, **beside)
            found.append([model, "pruner, LoRA 64, projector" if beside else "pruner", f"{gpus}", strategy,
                          *figures(cost, gpu)])
    return found


def trained_rows(gpu: str, model: str = "llava-1.5-7b") -> list[list[str]]:
    """Everything that can be trained, on 8 GPUs with DDP."""
    found = []
    for method, options, beside in TRAINED:
        asked = trainee(method, KNOWN[model], text_tokens=TEXT, **options)
        cost = costs(model, gpu, asked, gpus=8, strategy="ddp", **beside)
        said = ", ".join([f"K = {value}" if name == "keep" else f"{name} {value}" for name, value in options.items()]
                         + ["LoRA 64" if name == "lora_rank" else "projector" for name in beside])
        found.append([f"`{method}`" + (f", {said}" if said else ""), f"{cost.gradients / 4e6:.1f}",
                      f"{KNOWN[model].tokens_per_crop if asked.tokens is None else asked.tokens}",
                      *figures(cost, gpu)])
    return found


def table(head: list[str], left: set[str], rows: list[list[str]]) -> str:
    lines = [head, ["---" if name in left else "--:" for name in head], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def block(gpu: str = "a100-80g") -> str:
    common = ["weights GB", "gradients, Adam GB", "activations GB", "gathered GB", "each GPU GB", "s / step",
              "h / epoch"]
    share = parameters(KNOWN["llava-1.5-7b"])
    return (
        table(["model", "trained", "GPUs", "how", *common], {"model", "trained", "how"}, spread_rows(gpu))
        + "\n\nWhat can be trained, LLaVA-1.5-7B on 8 GPUs with DDP; image tokens are those that stand in the sequence "
        "in training:\n\n"
        + table(["trained", "its parameters M", "image tokens", *common], {"trained"}, trained_rows(gpu))
        + f"\n\nEstimated, not measured: {DEVICES[gpu].name}, bf16, checkpointing, {BATCH} samples a step, {MICRO} at "
        f"a time, 576 image and {TEXT} text tokens, all of which a method that hears the question is taken to read, "
        f"{SAMPLES:,} samples an epoch; {ASSUMED_MFU:.0%} of the peak is assumed, {OVERHEAD / 1e9:.0f} GB of each GPU "
        "are CUDA's and NCCL's. Gathered are weights of other GPUs, of two layers in FSDP2 and up to 10^9 in ZeRO-3, "
        "and DeepSpeed's bucket of 5 x 10^8 gradients, its defaults. LLaVA-1.5-7B has "
        f"{sum(share.values()) / 1e9:.2f} billion parameters.")


def rendered(page: str) -> str:
    return re.sub(r"(<!-- cluster -->\n).*?(\n<!-- /cluster -->)", lambda m: m[1] + block() + m[2], page,
                  flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
