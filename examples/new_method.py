"""A method of one's own: a class with a name and a score, measured against the floors on the digits task.

    python examples/new_method.py
    python examples/new_method.py --keep 4 16 --samples 384

The records, with intervals and costs, are left in --out; `budgetprune report` makes a page of them.
"""

import argparse

from budgetprune import Selector, tasks
from budgetprune.evaluation import markdown_table
from budgetprune.evaluation.run import EvalConfig, evaluate
from budgetprune.training import load_base


class Contrast(Selector):
    """score[n] = distance of token n from the mean token of its image: what differs from the rest is kept."""

    name = "contrast"

    def score(self, view):
        return (view.tokens - view.tokens.mean(1, keepdim=True)).float().norm(dim=-1)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=int, nargs="+", default=[4, 8, 16], help="budgets, of 64 tokens")
    parser.add_argument("--samples", type=int, default=192, help="questions")
    parser.add_argument("--out", default="runs/new-method", help="folder of the records")
    options = parser.parse_args(arguments)
    model, processor = load_base()
    # From here on it is a method like the others, to prune(model, "contrast", keep=8) too.
    config = EvalConfig(("none", Contrast.name, "uniform", "random"), options.keep, samples=options.samples,
                        latency_batch=0, images=0)
    records = evaluate(model, processor, tasks.build("digits"), options.out, config, model_name="digits-llava",
                       resume=False, tell=lambda cell, done, total: print(f"{done}/{total} {cell}"))
    print(markdown_table(records))


if __name__ == "__main__":
    main()
