"""Records of models of different size as points of the scaling law."""

from pathlib import Path

from ..cost import ScalingPoint
from .record import FILE_NAME, latest, read
from .summary import FULL


def scaling_points(paths, sizes: dict, *, task=None, method=None) -> list[ScalingPoint]:
    """One ScalingPoint per cell of the records in `paths`: files, or folders with records.jsonl.

    sizes: {model name of the records: billions of parameters}. task, method: which of several; the full model's
    records count as those of any method, at all its tokens. A point's tokens are those that a layer sees in the mean
    where the method acts inside the language model, since they are what the law's FLOPs are of; else the mean count
    kept; its error is 1 - accuracy.
    Cells that spare layers are left out: the law is of tokens in whole models.
    ValueError: no records; a model without a size, or a size of no model; several tasks or methods and none chosen,
    or one that no record is of; a cell that kept nothing.
    """
    records = []
    for path in map(Path, paths):
        path = path / FILE_NAME if path.is_dir() else path
        found = read(path)
        if not found:
            raise ValueError(f"no records in {path}: `budgetprune eval` makes them")
        records += [r for r in found if r.layers is None]
    records = _of_one(records, "task", task, set())
    records = _of_one(records, "method", method, {FULL})
    models = sorted({r.model for r in records})
    if missing := [name for name in models if name not in sizes]:
        raise ValueError(f"model-size must give the billions of {', '.join(missing)}, as in {missing[0]}=7")
    if unknown := sorted(sizes.keys() - models):
        raise ValueError(f"model-size must be of models in the records ({', '.join(models)}), got {unknown[0]}")
    points = []
    for r in latest(records):
        tokens = next(v for v in (r.layer_mean, r.kept_mean, r.keep) if v is not None)
        if not tokens:
            raise ValueError(f"records must keep at least one image token, {r.model} with {r.method} kept none")
        points.append(ScalingPoint(float(sizes[r.model]), tokens, 1 - r.accuracy))
    return points


def _of_one(records, name, wanted, always):
    """The records whose field is `wanted`, or the only value there is; those with a value in `always` stay."""
    values = sorted({getattr(r, name) for r in records} - always)
    if wanted is None and len(values) > 1:
        raise ValueError(f"{name} must be one of {', '.join(values)}: the law is of one {name}, the records of several")
    if wanted is not None and wanted not in values:
        raise ValueError(f"{name} must be one of {', '.join(values) or 'none'}, those of the records, got {wanted!r}")
    chosen = {wanted if wanted is not None else v for v in values} | always
    return [r for r in records if getattr(r, name) in chosen]
