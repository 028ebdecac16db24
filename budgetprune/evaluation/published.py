"""Figures that papers published, as the report shows them beside what was measured: in grey, and named published."""

import json
import re
from functools import cache
from pathlib import Path
from statistics import fmean

MODEL = "LLaVA-1.5-7B"
# Our tasks: what papers call them, what their score is (a metric of ours; None: accuracy), what to know of theirs.
TASKS = {"textvqa": ("TextVQA", None, "with OCR tokens in the prompt"),
         "scienceqa": ("SQA", None, "questions with an image"),
         "gqa": ("GQA", None, ""),
         "vqav2": ("VQAv2", None, ""),
         "seed": ("SEED", None, ""),
         "pope": ("POPE", "f1", "F1, the mean over its three files")}
LMMS = {"f1": "pope_f1_score"}  # the same metric where lmms-eval has counted it, in tasks named lmms:NAME


@cache
def published() -> dict:
    """The package's published.json: {"sources": {key: where it stands}, "relative": rows, "scores": rows}.

    A row of `relative` is accuracy in percent of the full model at a count of image tokens, a row of `scores` the
    scores of single tasks. third_party: measured or quoted by others than the method's authors.
    """
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))


def full_of(row: dict) -> dict | None:
    """The row of the full model that `row`, one of `scores`, is measured against in the same source."""
    name = published()["sources"][row["source"]]["full"]
    return next((r for r in published()["scores"] if r["source"] == row["source"] and r["method"] == name
                 and r["model"] == row["model"]), None)


def relative(row: dict) -> float | None:
    """The mean over a source's tasks of score / full model's score, in percent; None where a task is missing."""
    full = full_of(row)
    if full is None or row["scores"].keys() != full["scores"].keys():
        return None
    return 100 * fmean(score / full["scores"][task] for task, score in row["scores"].items())


def is_published_model(name: str) -> bool:
    """Whether a record's model is the one that the points are of, however its name is written."""
    return re.search(r"llavav?1\.57b", re.sub(r"[^a-z0-9.]", "", name.lower())) is not None


def references(task: str, model: str) -> list[dict]:
    """Published scores in [0, 1] of a record's task and model, by image tokens kept: {method, tokens, score, metric,
    said}. Nothing where papers use another task or another model: such points belong on no common axis; nor of
    methods that skip layers, whose cost is not their tokens.

    A figure that two sources restate is there once, as the first of them has it.
    """
    rest = task.removeprefix("lmms:")
    name, metric, known = TASKS.get(re.split("[:,]", rest)[0], (None, None, ""))
    metric = LMMS.get(metric) if rest != task else metric
    if name is None or not is_published_model(model):
        return []
    found = {}
    for row in published()["scores"]:
        if row["model"] == MODEL and name in row["scores"] and not row.get("skips_layers"):
            source = published()["sources"][row["source"]]
            lines = ["published, not measured here", f"{row.get('tokens_said', row['tokens'])} image tokens",
                     f"{name} {row['scores'][name]:g}" + (f", {known}" if known else ""), row["detail"],
                     source["title"] + (" (third party)" if row["third_party"] else "")]
            found.setdefault((row["method"], row["tokens"], row["scores"][name]), {
                "method": row["method"], "tokens": row["tokens"], "score": row["scores"][name] / 100,
                "metric": metric, "said": lines})
    return list(found.values())
