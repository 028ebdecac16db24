"""The estimates of docs/cluster.md: memory and time of training a pruner, by GPU count.

    python benchmarks/cluster_table.py     rewrite them
"""

import re
from pathlib import Path

from budgetprune.cost import KNOWN, parameters
from budgetprune.cost.hardware import DEVICES
from budgetprune.cost.training import ASSUMED_MFU, OVERHEAD, training_cost

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cluster.md"
SAMPLES, BATCH, TEXT = 665_298, 128, 200  # rows of llava_v1_5_mix665k.json; tokens of questions and answers, assumed
RUNS = [("llava-1.5-7b", {}), ("llava-1.5-7b", {"lora_rank": 64, "projector": True}), ("llava-1.5-13b", {})]
SPREAD = [(1, "ddp"), (8, "ddp"), (8, "fsdp"), (32, "fsdp")]
MICRO = 4


def rows(gpu: str) -> list[list[str]]:
    found = []
    for model, trained in RUNS:
        for gpus, strategy in SPREAD:
            cost = training_cost(KNOWN[model], gpu, gpus=gpus, strategy=strategy, batch=BATCH, micro_batch=MICRO,
                                 text_tokens=TEXT, **trained)
            fits = cost.memory_bytes <= DEVICES[gpu].memory_bytes
            what = "pruner, LoRA 64, projector" if trained else "pruner"
            found.append([model, what, f"{gpus}", strategy, f"{cost.weights / 1e9:.1f}",
                          f"{(cost.gradients + cost.optimizer) / 1e9:.2f}",
                          f"{(cost.activations + cost.logits) / 1e9:.1f}",
                          f"{cost.memory_bytes / 1e9:.1f}" + ("" if fits else " (does not fit)"),
                          f"{cost.step_seconds:.1f}", f"{cost.hours(SAMPLES, BATCH):.1f}"])
    return found


def block(gpu: str = "a100-80g") -> str:
    head = ["model", "trained", "GPUs", "how", "weights GB", "gradients, Adam GB", "activations GB", "each GPU GB",
            "s / step", "h / epoch"]
    lines = [" | ".join(("", *row, "")).strip() for row in (head, ["---", "---", *["--:"], "---", *["--:"] * 6],
                                                            *rows(gpu))]
    share = parameters(KNOWN["llava-1.5-7b"])
    return "\n".join(lines) + (
        f"\n\nEstimated, not measured: {DEVICES[gpu].name}, bf16, checkpointing, {BATCH} samples a step, {MICRO} at a "
        f"time, 576 image and {TEXT} text tokens, {SAMPLES:,} samples an epoch; {ASSUMED_MFU:.0%} of the peak is "
        f"assumed, {OVERHEAD / 1e9:.0f} GB of each GPU are CUDA's and NCCL's. LLaVA-1.5-7B has "
        f"{sum(share.values()) / 1e9:.2f} billion parameters.")


def rendered(page: str) -> str:
    return re.sub(r"(<!-- cluster -->\n).*?(\n<!-- /cluster -->)", lambda m: m[1] + block() + m[2], page,
                  flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
