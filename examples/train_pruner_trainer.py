"""The stock transformers Trainer trains a pruner and LoRA together; both are saved as one peft adapter and reloaded.

    python examples/train_pruner_trainer.py                  # the digits LLaVA, some minutes on two CPU cores
    python examples/train_pruner_trainer.py --steps 10       # to see it go

Nothing here is particular to the digits but the data set: any map-style data set of forward arguments with labels
does. `budgetprune train` does the same with checkpoints that survive being killed.
"""

import argparse

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

import budgetprune
from budgetprune.tasks.digits import draw
from budgetprune.training import batch_inputs, held_out, load_base

ATTENTION = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"


class Digits(torch.utils.data.Dataset):
    """Item i: forward arguments of one image with its three questions, labels on the answers."""

    def __init__(self, processor, images):
        self.batch = batch_inputs(draw("train", images, seed=0), processor)

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.batch.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--keep", type=int, default=8, help="tokens kept when evaluated, of 64")
    parser.add_argument("--train-keep", type=int, nargs=2, default=(2, 24), help="each step draws its count from here")
    parser.add_argument("--images", type=int, default=256, help="held-out images, with three questions each")
    parser.add_argument("--out", default="runs/trainer")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model, processor = load_base()
    model.requires_grad_(False)
    pruning = budgetprune.prune(model, "adaptive", keep=options.keep, train_keep=tuple(options.train_keep))
    # modules_to_save makes the pruner part of the adapter: trained with it, saved with it, switched with it.
    trained = get_peft_model(model, LoraConfig(r=8, target_modules=ATTENTION, modules_to_save=["budget_pruner"]))
    trained.print_trainable_parameters()
    settings = TrainingArguments(
        output_dir=options.out, max_steps=options.steps, per_device_train_batch_size=options.batch_size,
        learning_rate=1e-3, warmup_steps=options.steps // 20, lr_scheduler_type="cosine", logging_steps=10,
        save_strategy="no", report_to=[], remove_unused_columns=False, dataloader_pin_memory=False)
    data = Digits(processor, images=options.steps * options.batch_size)
    before = held_out(trained, processor, images=options.images)["accuracy"]
    Trainer(trained, settings, train_dataset=data).train()
    after = held_out(trained.eval(), processor, images=options.images)["accuracy"]
    print(f"{options.keep} of 64 tokens: accuracy {before:.3f} before, {after:.3f} after {options.steps} steps")

    trained.save_pretrained(options.out)  # LoRA and pruner, one adapter
    pruning.save_pretrained(options.out)  # method, options and budget
    model, _ = load_base()
    budgetprune.from_pretrained(model, options.out)
    reloaded = PeftModel.from_pretrained(model, options.out).eval()
    again = held_out(reloaded, processor, images=options.images)["accuracy"]
    print(f"reloaded from {options.out}: accuracy {again:.3f}")
    return trained, reloaded


if __name__ == "__main__":
    main()
