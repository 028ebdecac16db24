"""Task x method x budget, each cell one record. A run that was cut off goes on where it stopped."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..checked import LARGEST_SEED, integer
from ..cost import VlmShape, prefill_flops
from ..models import from_pretrained, prune
from ..models.adapter import WEIGHTS, read_config
from ..models.base import family_of
from ..selectors.base import find
from ..tasks import Sample, Task
from . import measure, pictures, record
from .record import Record, wilson_interval
from .summary import FULL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated.

    methods: names. budgets: counts K, one cell each; None: the method's own count, where it has one. The full
        model (`none`) has one cell, all tokens.
    pruners: folder of the trained weights of each trainable method. options: options of each method.
    samples: questions of the test split, drawn from `seed`. batch: prompts at a time. new_tokens: longest answer.
    latency_batch: prompts of the timed batch; 0 leaves time and memory out. images: pictures for the report.
    """

    methods: Sequence[str]
    budgets: Sequence[int | None]
    pruners: dict[str, Path] = field(default_factory=dict)
    options: dict[str, dict] = field(default_factory=dict)
    samples: int = 768
    seed: int = 0
    batch: int = 128
    new_tokens: int = 2
    latency_batch: int = 32
    images: int = 6

    def __post_init__(self):
        for name, least in (("samples", 1), ("batch", 1), ("new_tokens", 1), ("latency_batch", 0), ("images", 0)):
            integer(name, getattr(self, name), least)
        integer("seed", self.seed, most=LARGEST_SEED)
        if isinstance(self.methods, str) or not self.methods:
            raise ValueError(f"methods must be a sequence of at least one name, got {self.methods!r}")
        for method in self.methods:
            if find(method).trainable and method not in self.pruners:
                raise ValueError(f"{method} is trained: name the folder of its weights (`budgetprune train` makes one)")
        for method, folder in self.pruners.items():
            if method not in self.methods:
                raise ValueError(f"pruners must be of methods that are evaluated, {', '.join(self.methods)}; got "
                                 f"{folder}, which is of {method}")
        pruned = [method for method in self.methods if method != FULL]
        if pruned and not self.budgets:
            raise ValueError("budgets must name at least one count, got none")
        for keep in self.budgets:
            if keep is not None:
                integer("budgets", keep, 1)
        if pruned and set(self.budgets) == {None} and not any(find(method).adaptive_count for method in pruned):
            raise ValueError(f"budgets must name a count where no method has its own, got only their own of "
                             f"{', '.join(pruned)}")

    def options_of(self, method: str) -> dict:
        """What tells this method's cells apart: its options, and of a trained one its saved options and its weights.

        FileNotFoundError: no pruner in its folder. ValueError: the folder holds another method.
        """
        if method not in self.pruners:
            return dict(self.options.get(method, {}))
        folder = Path(self.pruners[method])
        saved = read_config(folder)
        if saved["method"] != method:
            raise ValueError(f"{folder} holds a pruner of {saved['method']}, not of {method}")
        files = [folder / name for name in (WEIGHTS, "adapter_model.safetensors") if (folder / name).is_file()]
        weights = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        return {**saved["options"], "weights": weights[:8]}

    def cells(self, tokens: int) -> list[tuple[str, int | None]]:
        """(method, K) of every cell; a method without a count of its own has no cell for None."""
        found = []
        for method in self.methods:
            if method == FULL:
                found.append((method, tokens))
                continue
            for keep in self.budgets:
                if keep is None and not find(method).adaptive_count:
                    continue
                if keep is not None and not 1 <= keep <= tokens:
                    raise ValueError(f"budgets must be in [1, N={tokens}], got {keep}")
                found.append((method, keep))
        return found


def pruners_in(folders: Sequence[Path]) -> dict[str, Path]:
    """{method: folder} of trained pruners.

    FileNotFoundError: a folder has none. ValueError: two have one method, or one cannot be read.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        method = read_config(folder)["method"]
        if method in found:
            raise ValueError(f"pruners must be of different methods, {found[method]} and {folder} are both {method}")
        found[method] = folder
    return found


def evaluate(model: nn.Module, processor, task: Task, out, config: EvalConfig, *, model_name: str,
             resume: bool = True, tell: Callable[[str, int, int], None] | None = None) -> list[Record]:
    """Runs every cell that out/records.jsonl does not hold yet, and returns the records of all.

    Answers are generated as text and scored by the task. resume: False begins anew; what the folder held is kept
    beside it as *.old. tell: called with (cell, done, total).

    TypeError: the model is of no family. ValueError: its images differ in their number of tokens, a budget is beyond
    that, or a folder holds another method.
    """
    out = Path(out)
    _, tokens, grid = family_of(model).features(model)
    if tokens is None:
        raise ValueError("model must give every image the same number of image tokens, which budgets are counts of; "
                         f"in {type(model).__name__} it depends on the image")
    path, cells = out / record.FILE_NAME, config.cells(tokens)
    options_of = {method: config.options_of(method) for method in config.methods}
    if not resume:
        for name in (record.FILE_NAME, pictures.FILE_NAME):
            if (out / name).exists():
                (out / name).replace(out / f"{name}.old")
    samples = task.samples("test", config.samples, config.seed)
    batches = [prepare(processor, samples[i:i + config.batch], model) for i in range(0, len(samples), config.batch)]
    done = {_cell(r): r for r in record.read(path) if _same_run(r, task, model_name, config)}
    model.eval()
    for number, (method, keep) in enumerate(cells):
        options = options_of[method] | ({"count": "own"} if keep is None else {})
        cell = (method, "own" if keep is None else keep, json.dumps(options_of[method], sort_keys=True))
        if tell:
            tell(f"{method} {'own count' if keep is None else f'K={keep}'}", number, len(cells))
        if cell in done:
            continue
        with entered(model, method, keep, config) as (active, pruning):
            answers, kept, counts = generate(active, processor, batches, pruning, tokens, config)
            result = assess(samples, answers, kept, counts, task)
            costs = cost_of(model, active, pruning, counts, batches, config, tokens)
            here = record.environment(batches[0]["input_ids"].device)
            done[cell] = Record(task=task.name, model=model_name, method=method, method_options=options,
                                keep=round(result["kept_mean"]) if keep is None else keep, samples=len(samples),
                                seed=config.seed, **result, **costs, **here)
            draw(out, task, samples, answers, kept, grid, done[cell], config)
        record.append(path, done[cell])
    if tell:
        tell("done", len(cells), len(cells))
    return list(done.values())


def _cell(r: Record):
    options = dict(r.method_options)
    own = options.pop("count", None) == "own"
    return r.method, "own" if own else r.keep, json.dumps(options, sort_keys=True)


def _same_run(r: Record, task, model_name, config):
    return (r.task, r.model, r.samples, r.seed) == (task.name, model_name, config.samples, config.seed)


def prepare(processor, samples: Sequence[Sample], model: nn.Module) -> dict:
    """Prompts and images of `samples` as forward arguments, left-padded, on the model's device."""
    prompts = [prompt(processor, sample.question) for sample in samples]
    inputs = processor(text=prompts, images=[sample.image for sample in samples], return_tensors="pt", padding=True)
    return {name: value.to(model.device) for name, value in inputs.items()}


def prompt(processor, question: str) -> str:
    """The question about one image, in the processor's own chat form."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


@contextmanager
def entered(model: nn.Module, method: str, keep: int | None, config: EvalConfig) -> Iterator:
    """(the model to run, its pruning) of a cell; the full model is the stock one, without any hook of ours."""
    if method == FULL:
        yield model, None
        return
    folder = config.pruners.get(method)
    if folder is None:
        with prune(model, method, keep=keep, seed=config.seed, **config.options.get(method, {})) as pruning:
            yield model, pruning
        return
    with from_pretrained(model, folder, keep=keep) as pruning:
        if not (Path(folder) / "adapter_config.json").is_file():
            yield model, pruning
            return
        from peft import PeftModel

        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        adapted = PeftModel.from_pretrained(model, folder).eval()
        try:
            yield adapted, pruning
        finally:
            adapted.unload()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trained[name])


@torch.no_grad()
def generate(model, processor, batches, pruning, tokens: int, config: EvalConfig):
    """(answers as text, kept patches [one list per sample], tokens to the language model) over all batches."""
    answers, kept, counts = [], [], []
    for inputs in batches:
        out = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=config.new_tokens)
        new = out[:, inputs["input_ids"].shape[1]:]
        answers += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
        plan = pruning.plan if pruning is not None else None
        if plan is None:  # the full model, or a mid-LLM method that had nothing to drop
            kept += [list(range(tokens))] * len(out)
            counts += [tokens] * len(out)
        else:
            kept += [[n for n in row if n >= 0] for row in plan.kept.tolist()]
            counts += [n + int(getattr(pruning.selector, "use_cls", False)) for n in plan.counts()]
    return answers, kept, counts


def assess(samples, answers, kept, counts, task: Task) -> dict:
    """Accuracy with its interval, and the share of the patches that matter that was kept."""
    hits = sum(task.score(answer, sample) for answer, sample in zip(answers, samples, strict=True))
    known = [(set(sample.relevant), set(row)) for sample, row in zip(samples, kept, strict=True) if sample.relevant]
    recall = sum(len(wanted & row) / len(wanted) for wanted, row in known) / len(known) if known else None
    return {"accuracy": hits / len(samples), "ci95": wilson_interval(hits, len(samples)), "kept_recall": recall,
            "kept_mean": sum(counts) / len(counts)}


def cost_of(model, active, pruning, counts, batches, config: EvalConfig, tokens: int) -> dict:
    """FLOPs by formula, milliseconds and bytes by measurement."""
    shape, selector = VlmShape.from_config(model.config), pruning.selector if pruning is not None else None
    kept = round(sum(counts) / len(counts))
    text = round(float(batches[0]["attention_mask"].sum(1).float().mean())) - shape.tokens_per_crop
    tokens_in, depth = shape.tokens_per_crop, shape.decoder.layers
    inside = selector is not None and selector.place == "llm"
    late = inside or (selector is not None and selector.after_projector)
    flops = prefill_flops(shape, tokens_in, tokens_in if inside else kept, text,
                          stages=selector.stages(tokens_in, kept, depth) if inside else (),
                          projected="all" if late else "kept",
                          selector_flops=selector.flops(tokens, shape.decoder.hidden if late else shape.tower.hidden,
                                                        kept) if selector else 0)
    costs = {"prefill_flops": flops.total}
    if inside:
        costs["layer_mean"] = selector.average(tokens_in, kept, depth)
    if config.latency_batch:
        timed = {name: value[: config.latency_batch] for name, value in batches[0].items()}
        costs |= {"latency_batch": len(timed["input_ids"]), "prefill_ms": measure.prefill_ms(active, timed),
                  "decode_ms_per_token": measure.decode_ms_per_token(active, timed, warmup=1, repeats=3),
                  "peak_bytes": measure.peak_bytes(active, timed)}
    return costs


def draw(out: Path, task: Task, samples, answers, kept, grid, cell: Record, config: EvalConfig) -> None:
    """Appends what a method kept of the first images: one line per image, with the image's first question."""
    from PIL import Image

    chosen = {}
    for number, sample in enumerate(samples):
        chosen.setdefault(sample.image_id, number)
    lines = []
    for index in list(chosen.values())[: config.images]:
        sample = samples[index]
        name = f"images/{sample.image_id}.png"
        target = out / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            image = sample.image if isinstance(sample.image, Image.Image) else Image.fromarray(sample.image)
            aside = target.with_suffix(".part")
            image.save(aside, "PNG")
            aside.replace(target)
        lines.append(json.dumps({"image": name, "task": task.name, "method": cell.method, "keep": cell.keep,
                                 "grid": list(grid), "kept": kept[index], "question": sample.question,
                                 "answer": sample.answer, "prediction": answers[index],
                                 "right": task.score(answers[index], sample)}))
    record.append_lines(out / pictures.FILE_NAME, lines, pictures.Picture.from_json)
