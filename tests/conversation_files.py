"""Conversations about digits in the form of LLaVA's files, for the processor of the digits LLaVA."""

import json

import numpy as np
from PIL import Image

from budgetprune.tasks.digits import COLOURS, draw

TEXT_ROWS = (3, 8)


def digits_rows(folder, count=12, broken=(), text_rows=TEXT_ROWS):
    """Writes `count` rows to folder/data.json and their images to folder/images; returns the rows.

    Row i has three questions about its canvas, or, in text_rows, one without an image. Images of rows in `broken` are
    cut off.
    """
    canvases = draw("train", count, seed=5)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        turns = [(f"which digit is {list(COLOURS)[colour]}", str(answer))
                 for colour, answer in zip(canvases.colours[i].tolist(), canvases.answers[i].tolist(), strict=True)]
        turns = turns[:1 + i % 3]
        row = {"id": f"canvas-{i}", "conversations": [
            {"from": who, "value": text} for question, answer in turns for who, text in
            (("human", question), ("gpt", answer))]}
        if i not in text_rows:
            path = folder / "images" / f"{i}.png"
            Image.fromarray(np.asarray(canvases.images[i])).save(path)
            if i in broken:
                path.write_bytes(path.read_bytes()[:60])
            row["image"] = path.name
            row["conversations"][0]["value"] = "<image>\n" + row["conversations"][0]["value"]
        rows.append(row)
    (folder / "data.json").write_text(json.dumps(rows, indent=1))
    return rows
