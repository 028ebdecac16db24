"""The stock transformers Trainer and accelerate around a pruned model: accumulation, resuming, state."""

import pytest
import torch
from tiny import make_batch, make_llava
from transformers import Trainer, TrainingArguments

import budgetprune

TRAINED = r".*language_model.*\.(q_proj|v_proj)"


class Rows(torch.utils.data.Dataset):
    """Eight rows of one length, with one to eight labels each, so that batches weigh their tokens differently."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        row = {name: value[0] for name, value in make_batch(text=(9,), seed=index, labels=True).items()}
        row["labels"][:-1 - index] = -100
        return row


def to_train(lora=False, train_keep=None):
    model = make_llava().requires_grad_(False)
    pruning = budgetprune.prune(model, "adaptive", keep=5, train_keep=train_keep)
    if not lora:
        return model, pruning
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=TRAINED, modules_to_save=["budget_pruner"])), pruning


def trainer(model, folder, **options):
    options = {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 0.05, "optim": "sgd",
               "save_strategy": "no", **options}
    return Trainer(model, TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True,
                                            remove_unused_columns=False, dataloader_pin_memory=False, **options),
                   train_dataset=Rows())


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lora", [False, True], ids=["pruner", "lora"])
def test_accumulated_gradients_train_like_the_big_batch(tmp_path, lora):
    weights = []
    for rows, steps in ((4, 1), (2, 2), (1, 4)):
        torch.manual_seed(0)
        model, pruning = to_train(lora)
        pruning.model.budget_pruner.set_noise(False)  # noise is drawn per forward, and there are more of them
        before = trained(model)
        trainer(model, tmp_path, per_device_train_batch_size=rows, gradient_accumulation_steps=steps).train()
        weights.append(trained(model))
    big, *accumulated = weights
    assert any((big[name] - before[name]).abs().max() > 1e-3 for name in big if "budget_pruner" in name)
    for small in accumulated:
        torch.testing.assert_close(small, big, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["pruner", "lora"])
def test_a_run_resumed_from_a_checkpoint_is_bit_equal_to_the_unbroken_one(tmp_path, lora):
    options = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
    torch.manual_seed(0)
    whole, _ = to_train(lora, train_keep=(2, 9))
    trainer(whole, tmp_path, **options).train()
    torch.manual_seed(1)  # what comes back must come from the checkpoint
    resumed, _ = to_train(lora, train_keep=(2, 9))
    assert any(not torch.equal(value, trained(resumed)[name]) for name, value in trained(whole).items())
    trainer(resumed, tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(value, trained(resumed)[name]) for name, value in trained(whole).items())


def test_accelerate_restores_pruner_optimizer_and_noise_to_the_bit(tmp_path):
    from accelerate import Accelerator

    def steps(model, optimizer, accelerator, first, last):
        losses = []
        for index in range(first, last):
            batch = torch.utils.data.default_collate([Rows()[index], Rows()[index + 1]])
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def prepared(seed):
        torch.manual_seed(seed)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = to_train(train_keep=(2, 9))[0].train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05)
        return (*accelerator.prepare(model, optimizer), accelerator)

    whole = prepared(0)
    steps(*whole, 0, 2)
    whole[2].save_state(tmp_path)
    expected = steps(*whole, 2, 6)
    resumed = prepared(1)
    assert steps(*resumed, 2, 6) != expected
    resumed[2].load_state(tmp_path)
    assert steps(*resumed, 2, 6) == expected
    assert all(torch.equal(value, trained(resumed[0])[name]) for name, value in trained(whole[0]).items())


def test_trainer_evaluates_on_the_tokens_that_stay(tmp_path):
    model, pruning = to_train()
    run = trainer(model, tmp_path, per_device_eval_batch_size=4)
    loss = run.evaluate(Rows())["eval_loss"]
    assert pruning.plan.counts() == [5] * 4, "evaluation must run on the tokens that stay"
    with torch.no_grad():
        losses = [model(**torch.utils.data.default_collate([Rows()[i] for i in part])).loss.item()
                  for part in (range(4), range(4, 8))]
    assert loss == pytest.approx(sum(losses) / 2, abs=1e-5)
