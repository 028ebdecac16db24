"""Small files of every published format, made by hand, with grey images."""

import json
from pathlib import Path

from PIL import Image

POPE = [{"question_id": 1, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a dog in the image?",
         "label": "yes"},
        {"question_id": 2, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a car in the image?",
         "label": "no"},
        {"question_id": 3, "image": "COCO_val2014_000000000002.jpg", "text": "Is there a cup in the image?",
         "label": "yes"},
        {"question_id": 4, "image": "COCO_val2014_000000000002.jpg", "text": "Is there an owl in the image?",
         "label": "no"}]
TEXTVQA = [{"question_id": 34602, "image_id": "0a1b", "question": "what is the brand of this CAMERA?",
            "answers": ["nous les gosses", *["Dakota"] * 2, "dakota digital", *["the dakota"] * 2, "clos culombu",
                        "nikon", "nikon", "nikon"]},
           {"question_id": 34603, "image_id": "0a1c", "question": "what time is it?", "answers": ["Ten"] * 10}]
PROBLEMS = {
    "5": {"question": "Which is it?", "choices": ["iron", "mushroom"], "answer": 1, "hint": "A food web.",
          "image": "image.png", "subject": "natural science", "split": "test"},
    "6": {"question": "No image here?", "choices": ["yes", "no"], "answer": 0, "hint": "", "image": None,
          "subject": "language science", "split": "test"},
    "11": {"question": "What is the capital of Wyoming?", "choices": ["Phoenix", "Baton Rouge", "Honolulu", "Cheyenne"],
           "answer": 3, "hint": "", "image": "image.png", "subject": "social science", "split": "test"},
    "12": {"question": "Of the other list?", "choices": ["a", "b", "c"], "answer": 2, "hint": "", "image": "image.png",
           "subject": "natural science", "split": "val"}}
PID_SPLITS = {"test": ["5", "6", "11"], "val": ["12"], "minival": ["12"]}
GQA = {"201307251": {"question": "Is it overcast?", "imageId": "n161313", "answer": "no", "isBalanced": True,
                     "types": {"structural": "verify", "semantic": "global"}},
       "201640614": {"question": "Who is wearing the dress?", "imageId": "n235859", "answer": "woman",
                     "isBalanced": True, "types": {"structural": "query", "semantic": "rel"}},
       "201640615": {"question": "Not balanced?", "imageId": "n235859", "answer": "yes", "isBalanced": False,
                     "types": {"structural": "verify", "semantic": "rel"}}}


def images(folder, *names, size=(12, 8), mode="L"):
    for name in names:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 90).save(path)
    return Path(folder)


def pope(folder, lines=POPE, name="coco_pope_popular.json"):
    """Options of the task."""
    path = Path(folder) / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"annotations": path, "images": images(Path(folder) / "val2014", *{line["image"] for line in POPE})}


def textvqa(folder, data=TEXTVQA):
    path = Path(folder) / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"dataset_type": "val", "data": data}))
    return {"annotations": path, "images": images(Path(folder) / "train_images", "0a1b.jpg", "0a1c.jpg")}


def rosetta(folder, data=None):
    path = Path(folder) / "TextVQA_Rosetta_OCR_v0.2_val.json"
    data = data or [{"image_id": "0a1b", "ocr_tokens": ["DAKOTA", "DIGITAL"], "ocr_info": []},
                    {"image_id": "0a1c", "ocr_tokens": [], "ocr_info": []}]
    path.write_text(json.dumps({"data": data}))
    return path


def scienceqa(folder, problems=PROBLEMS, splits=PID_SPLITS):
    folder = Path(folder)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    images(folder / "images", "test/5/image.png", "test/11/image.png", "val/12/image.png", mode="RGBA")
    return {"annotations": folder / "problems.json"}


def gqa(folder, questions=GQA):
    path = Path(folder) / "testdev_balanced_questions.json"
    path.write_text(json.dumps(questions))
    return {"annotations": path, "images": images(Path(folder) / "images", "n161313.jpg", "n235859.jpg")}


MAKE = {"pope": pope, "textvqa": textvqa, "scienceqa": scienceqa, "gqa": gqa}
