"""Fewer image tokens, fewer layers, or some of both, at the same FLOPs: accuracy on the digits, and milliseconds.

    python benchmarks/joint.py              train three models into runs/joint, measure, print (under five minutes)

One model learns to spare tokens, one to spare layers, one both, each for every budget; all are fine-tuned alike, on as
many images. At each budget the third takes the pair of tokens and layers that answers best on images made of training's
digits. Interrupted, the same command goes on.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from budgetprune import tasks
from budgetprune.cost import VlmShape, joint_flops
from budgetprune.evaluation import measure, record
from budgetprune.evaluation.interval import interval
from budgetprune.evaluation.prompts import prepare
from budgetprune.training.base_model import TEST_SEED, load_base
from budgetprune.training.joint import spend
from budgetprune.training.joint_config import JointConfig
from budgetprune.training.joint_task import chosen, scores, train_task_joint

PREFIX = {"prefix": 1}
ARMS = {"tokens": {"depth": None, "options": {"tau": 1.0}},
        "layers": {"method": None, "depth_options": PREFIX, "share_min": 0.48},  # all tokens in one layer cost that
        "joint": {"options": {"tau": 1.0}, "depth_options": PREFIX}}
SHARES = (0.35, 0.5, 0.67)
FULL = "full"
RESULTS = "joint.jsonl"
COMMITTED = Path(__file__).parent / "results" / RESULTS


def config_of(arm: str, steps: int, seed: int) -> JointConfig:
    return JointConfig(**ARMS[arm], steps=steps, batch_size=32, model_learning_rate=1e-3, seed=seed, save_every=50)


def asked(model, processor, images: int, batch: int) -> dict:
    """How often the model as it is answers right, and how long its prefill of `batch` prompts takes."""
    right = scores(model, processor, images=images)
    asked_of = [i * images // len(right) for i in range(len(right))]  # several questions an image
    inputs = prepare(processor, tasks.build("digits").samples("test", batch, TEST_SEED), model)
    return {"accuracy": sum(right) / len(right), "ci95": list(interval(right, asked_of)), "batch": batch,
            "prefill_ms": measure.prefill_ms(model, inputs)}


def full_model(images: int, batch: int, seed: int) -> dict:
    """The row that the others are held against: the bundled model, all tokens and layers, as it was trained."""
    model, processor = load_base()
    shape = VlmShape.from_config(model.config)
    keep, layers = shape.tokens_per_crop, shape.decoder.layers
    flops = joint_flops(shape, keep, layers, JointConfig().text_tokens, latency_tokens=0).total
    return {"arm": FULL, "share": 1.0, "steps": 0, "seed": seed, "images": images, "keep": keep, "layers": layers,
            "flops": flops, "of_full": 1.0, **asked(model, processor, images, batch)}


def measured(model, processor, config, arm: str, share: float, images: int, batch: int, choose: int) -> dict:
    """One row: what the budget was spent on, how often the answer is right, what the prefill takes."""
    cell = {"arm": arm, "share": share, "steps": config.steps, "seed": config.seed, "images": images}
    try:
        pair = chosen(model, processor, config, share, images=choose)
    except ValueError:  # the budget does not pay for all tokens in the prefix
        return cell | {"keep": None, "layers": None, "flops": None, "accuracy": None, "ci95": None, "prefill_ms": None}
    spend(model, pair)
    return cell | {"keep": pair.keep, "layers": pair.layers, "flops": pair.flops, "of_full": pair.share,
                   **asked(model, processor, images, batch)}


def run(out: Path, shares, steps: int, images: int, seed: int, batch: int = 32, choose: int = 64) -> list[dict]:
    """All rows; those that `out` holds are not measured again. batch: prompts that are timed. choose: images on which
    pairs are compared."""
    out.mkdir(parents=True, exist_ok=True)
    path, console = out / RESULTS, Console(stderr=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(r["arm"], r["share"], r["steps"], r["seed"], r["images"]): r for r in rows}

    def keep(cell, row):
        done[cell] = row | record.environment()
        with path.open("a") as file:
            file.write(json.dumps(done[cell]) + "\n")

    full = FULL, 1.0, 0, seed, images
    if full not in done:
        keep(full, full_model(images, batch, seed))
    for arm in ARMS:
        config, wanted = config_of(arm, steps, seed), [(arm, share, steps, seed, images) for share in shares]
        if all(cell in done for cell in wanted):
            continue
        folder = out / f"{arm}-{steps}-{seed}"

        def tell(step, values, arm=arm):
            if "loss" in values and step % 50 == 0:
                console.print(f"{arm}: step {step}/{steps}, loss {float(values['loss']):.3f}", highlight=False)

        model, processor = train_task_joint(folder, config, tell=tell)
        for cell in wanted:
            if cell not in done:
                keep(cell, measured(model, processor, config, arm, cell[1], images, batch, choose))
    return [done[full]] + [done[arm, share, steps, seed, images] for share in shares for arm in ARMS]


HEADS = "budget", "spared", "K", "layers", "FLOPs", "accuracy", "95 %", "ms", "against full"


def cells(rows: list[dict]) -> list[list[str]]:
    """What stands under HEADS."""
    full, found = rows[0], []
    for r in rows:
        start = [f"{r['share']:.0%}", "nothing" if r["arm"] == FULL else r["arm"]]
        found.append([*start, "-", "-", "too few", "", "", "", ""] if r["keep"] is None else
                     [*start, str(r["keep"]), str(r["layers"]), f"{r['flops'] / 1e6:.1f} M", f"{r['accuracy']:.3f}",
                      "{:.3f}-{:.3f}".format(*r["ci95"]), f"{r['prefill_ms']:.1f}",
                      f"{full['prefill_ms'] / r['prefill_ms']:.2f}x"])
    return found


def title(rows: list[dict]) -> str:
    return (f"digits, {rows[0]['images']} images, {rows[-1]['steps']} steps of training each; ms of one prefill of "
            f"{rows[0]['batch']} prompts")


def block() -> str:
    """The committed results as docs/depth.md shows them."""
    full, *rows = [json.loads(line) for line in COMMITTED.read_text().splitlines()]
    rows = [full, *sorted(rows, key=lambda row: row["share"])]
    lines = ["| " + " | ".join(HEADS) + " |", "|--:|---|" + "--:|" * (len(HEADS) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in cells(rows)]
    return "\n".join(lines) + (f"\n\n{title(rows)}. `python benchmarks/joint.py`, {rows[0]['device']}, torch "
                              f"{rows[0]['torch']}, {rows[0]['time'][:10]}, commit {rows[0]['commit']}.")


def table(rows: list[dict]) -> Table:
    shown = Table(*(Column(name, no_wrap=True) for name in HEADS), title=title(rows),
                  padding=0)  # fits 80 columns
    for row in cells(rows):
        shown.add_row(*row)
    return shown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/joint"))
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="budgets, of the full prefill's FLOPs")
    parser.add_argument("--steps", type=int, default=250, help="of training, each model")
    parser.add_argument("--images", type=int, default=256, help="of the test, three questions each")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    Console().print(table(run(asked.out, asked.shares, asked.steps, asked.images, asked.seed)))


if __name__ == "__main__":
    main()
