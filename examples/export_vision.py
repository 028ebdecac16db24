"""Exports tower, selection and projector of a pruned model as one graph, loads it again, and answers with it.

    python examples/export_vision.py                         # torch.export, runs wherever torch does
    python examples/export_vision.py --compile               # and AOTInductor: one library, needs a C++ compiler

What comes out of the graph are the K image tokens. The language model that reads them is the stock one: it gets a
prompt with K placeholders, and knows nothing of pruning. This suits methods whose position ids are compact.
"""

import argparse
from pathlib import Path

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

import budgetprune
from budgetprune.evaluation.run import prepare
from budgetprune.tasks import build
from budgetprune.training import load_base


@torch.no_grad()
def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="visionzip")
    parser.add_argument("--keep", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="with AOTInductor too")
    parser.add_argument("--out", type=Path, default=Path("runs/export"), help="folder of the exported programs")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    model, processor = load_base()
    example, sample = build("digits").samples("test", 6, 0)[::3][:2]

    with budgetprune.prune(model, options.method, keep=options.keep) as pruning:
        if pruning.selector.positions != "compact":
            parser.error(f"{options.method} keeps original position ids, which the stock model would not be given here")
        pixels = prepare(processor, [example], model)["pixel_values"]  # its shape matters, not what it shows
        program = budgetprune.export_vision(model, pixels)
        torch.export.save(program, options.out / "vision.pt2")
    run = torch.export.load(options.out / "vision.pt2").module()
    if options.compile:
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(options.out / "vision_aoti.pt2"))
        run = torch._inductor.aoti_load_package(package)

    inputs = prepare(processor, [sample], model)
    features, kept = run(inputs["pixel_values"])
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    ids = inputs["input_ids"][:, ~is_image | (is_image.cumsum(0) <= features.shape[1])]
    images = {"image": BaseModelOutputWithPooling(pooler_output=list(features))}
    answer = model(input_ids=ids, mm_encoder_outputs=images).logits[0, -1].argmax()
    print(f"{sorted(path.name for path in options.out.glob('*.pt2'))} in {options.out}")
    print(f"patches {kept[0].tolist()}")
    print(f"{sample.question}: {processor.tokenizer.decode(answer)} (right: {sample.answer})")


if __name__ == "__main__":
    main()
