"""Asks a model about an image with all of its image tokens and with fewer, and prints answers, counts and times.

    python examples/caption.py                                            # the small digits LLaVA of the package
    python examples/caption.py --model llava-hf/llava-1.5-7b-hf --image photo.jpg --question "What is this?"
    python examples/caption.py --method fastv --keep 8
"""

import argparse
import time

import torch
from PIL import Image

import budgetprune


def load(name):
    """(model, processor), of the hub or of a folder; None: the digits LLaVA."""
    if name is None:
        from budgetprune.training import load_base

        return load_base()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    where = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").to(where).eval()
    return model, AutoProcessor.from_pretrained(name)


def prepared(model, processor, image, question):
    """The question about the image as arguments of the model."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                           tokenize=True, return_dict=True, return_tensors="pt")
    return inputs.to(model.device, model.dtype)


@torch.no_grad()
def timed(model, processor, inputs, new_tokens):
    """(answer, seconds) of the faster of two runs; the first also warms up."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0].cpu()
        seconds.append(time.perf_counter() - begin)
    answer = processor.tokenizer.decode(tokens[inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    return answer.strip(), min(seconds)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name on the hub or a folder; default: the digits LLaVA of the package")
    parser.add_argument("--image", help="a file; default: a canvas of the digits task")
    parser.add_argument("--question", help='default: "Describe the image.", or which digit is of some colour')
    parser.add_argument("--method", default="visionzip", help="one of: " + ", ".join(budgetprune.methods()))
    parser.add_argument("--keep", default="0.25", help="a count (144) or a fraction (0.25)")
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    model, processor = load(options.model)
    if options.image:
        image, question = Image.open(options.image).convert("RGB"), options.question or "Describe the image."
    else:
        from budgetprune.tasks import build

        sample = build("digits").samples("test", 1, 0)[0]
        image, question = Image.fromarray(sample.image), options.question or sample.question
    inputs = prepared(model, processor, image, question)
    print(question)
    answer, seconds = timed(model, processor, inputs, options.new_tokens)
    print(f"all tokens: {answer!r}, {1000 * seconds:.1f} ms")
    keep = int(options.keep) if options.keep.isdecimal() else float(options.keep)
    with budgetprune.prune(model, options.method, keep=keep) as pruning:
        answer, seconds = timed(model, processor, inputs, options.new_tokens)
        kept = pruning.plan.counts()[0] if pruning.plan else "all"
    print(f"{options.method}, {kept} tokens: {answer!r}, {1000 * seconds:.1f} ms")


if __name__ == "__main__":
    main()
