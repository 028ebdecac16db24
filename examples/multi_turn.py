"""A conversation about one image over one pruned cache: the image is read once, later turns feed new words only.

    python examples/multi_turn.py
    python examples/multi_turn.py --method fastv --keep 16

A method that asks the question chooses by the first one; see how that goes with a small --keep.
"""

import argparse

import torch

import budgetprune
from budgetprune.evaluation.run import prepare
from budgetprune.tasks import build
from budgetprune.training import load_base


@torch.no_grad()
def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="visionzip")
    parser.add_argument("--keep", type=int, default=24, help="of 64 tokens")
    options = parser.parse_args(arguments)
    model, processor = load_base()
    questions = build("digits").samples("test", 3, 0)  # about one image
    inputs = prepare(processor, questions[:1], model)
    ids, cache = inputs["input_ids"], None
    with budgetprune.prune(model, options.method, keep=options.keep) as pruning:
        for turn, sample in enumerate(questions):
            if turn:  # the whole conversation, as the caller has it: with every placeholder of the image
                words = processor.tokenizer(sample.question, add_special_tokens=False, return_tensors="pt")
                ids = torch.cat([ids, words["input_ids"]], dim=1)
            images = {} if turn else {"pixel_values": inputs["pixel_values"]}
            held = cache.get_seq_length() if cache else 0
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **images, past_key_values=cache,
                                 max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
            said = processor.tokenizer.decode(out.sequences[0, ids.shape[1]:], skip_special_tokens=True)
            ids, cache = out.sequences, out.past_key_values
            print(f"{sample.question}: {said.strip()} (right: {sample.answer}); the conversation has {ids.shape[1]} "
                  f"tokens, the cache {cache.get_seq_length()}, {cache.get_seq_length() - held} of them new")
        print(f"image tokens kept: {pruning.plan.counts()[0]}")


if __name__ == "__main__":
    main()
