"""Compressors learn from the language model's loss in the loop that trains pruners, and are then evaluated."""

import json

import pytest
import torch
from tiny import IMAGE_TOKEN, PAD, make_batch, make_llava, state_of

import budgetprune
from budgetprune.training.config import TrainConfig
from budgetprune.training.loop import train_pruner

COMPRESSORS = budgetprune.compressors()
CONFIG = {"method": "quecc", "steps": 4, "batch_size": 2, "k_min": 4, "k_max": 4, "save_every": 2,
          "learning_rate": 1e-2}


class Stream(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {name: value[0] for name, value in make_batch(text=(5,), seed=index, labels=True).items()}


@pytest.mark.parametrize("train_projector", [True, False])
@pytest.mark.parametrize("method", COMPRESSORS)
def test_the_language_models_loss_alone_reaches_every_weight(method, train_projector):
    model, batch = make_llava(), make_batch(labels=True)
    batch["labels"][:, :-2] = -100
    model.requires_grad_(False)
    options = {"layer": "mlp"} if method == "pooling_projector" else {}
    budgetprune.prune(model, method, keep=4, train_projector=train_projector, **options)
    model.budget_pruner.requires_grad_(True)
    model.train()(**batch).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("budget_pruner.selector.") for name in trained)
    assert any(".projector." in name for name in trained) == train_projector
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("method", COMPRESSORS)
def test_training_and_inference_see_the_same_tokens(method):
    """No gates: the loss in training is that of the same prompt at inference."""
    model, batch = make_llava(), make_batch(labels=True)
    before = batch["input_ids"].roll(1, 1)
    batch["labels"] = batch["labels"].masked_fill((before == IMAGE_TOKEN) | (before == PAD), -100)
    budgetprune.prune(model, method, keep=4)
    out = model.train()(**batch)
    assert out.logits.shape[1] == batch["input_ids"].shape[1] - 12
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).loss, out.loss.detach())


@pytest.mark.parametrize("method", COMPRESSORS)
def test_a_few_steps_lower_the_loss(method):
    model, batch = make_llava(), make_batch(text=(6, 6), labels=True)
    batch["labels"][:, :-2] = -100
    model.requires_grad_(False)
    torch.manual_seed(0)
    budgetprune.prune(model, method, keep=4)
    optimizer = torch.optim.Adam(model.budget_pruner.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_gradient_checkpointing_changes_no_gradient():
    model, batch, gradients = make_llava(), make_batch(labels=True), []
    budgetprune.prune(model, "quecc", keep=4)
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.budget_pruner.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("method", COMPRESSORS)
def test_a_run_writes_a_compressor_that_loads_and_leaves_the_model_as_it_was(method, tmp_path):
    model, batch = make_llava(), make_batch()
    with torch.no_grad():
        untouched, before = model(**batch).logits, state_of(model)
    pruning = train_pruner(model, Stream(), tmp_path, TrainConfig(**{**CONFIG, "method": method}))
    with torch.no_grad():
        expected = model(**batch).logits
        fresh = make_llava()
        budgetprune.from_pretrained(fresh, tmp_path)
        assert torch.equal(fresh(**batch).logits, expected)
        pruning.remove()
        del model._is_accelerate_prepared  # the Trainer's
        assert torch.equal(model(**batch).logits, untouched) and state_of(model) == before
    saved = json.loads((tmp_path / "budgetprune_config.json").read_text())
    assert (saved["method"], saved["keep"], saved["train_keep"]) == (method, 4, None)


def test_a_broken_off_run_goes_on_to_the_same_bits(tmp_path):
    weights = []
    for name, stops in (("whole", False), ("broken", True)):
        def tell(step, values, stops=stops):
            if stops and step == 3:
                raise RuntimeError("the lights went out")

        if stops:
            with pytest.raises(RuntimeError, match="the lights went out"):
                train_pruner(make_llava(), Stream(), tmp_path / name, TrainConfig(**CONFIG), tell=tell)
        model = make_llava()
        train_pruner(model, Stream(), tmp_path / name, TrainConfig(**CONFIG))
        weights.append(model.budget_pruner.weights())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_lora_and_compressor_live_in_one_adapter(tmp_path):
    from peft import PeftModel

    model, batch = make_llava(), make_batch()
    train_pruner(model, Stream(), tmp_path, TrainConfig(**{**CONFIG, "lora_rank": 2}))
    fresh = make_llava()
    budgetprune.from_pretrained(fresh, tmp_path)
    with torch.no_grad():
        expected = model(**batch).logits
        torch.testing.assert_close(PeftModel.from_pretrained(fresh, tmp_path).eval()(**batch).logits, expected)


def test_a_range_of_counts_is_refused_before_a_run_begins():
    with pytest.raises(ValueError, match="k_min and k_max must be one count for quecc, .* got 2 and 24"):
        TrainConfig(method="quecc")
    with pytest.raises(ValueError, match=r"method must be a trained one \(.*pooling_projector, quecc, resampler\)"):
        TrainConfig(method="uniform")


def test_the_command_line_trains_and_evaluates_one_at_its_count(tmp_path, monkeypatch, capfd):
    from budgetprune import cli

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["budgetprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capfd.readouterr()
        return leave.value.code or 0, out + err

    code, said = run("train", "--method", "quecc", "--keep", 16, "--option", "layers=[2,4]", "--option",
                     "train_projector=false", "--steps", 2, "--batch-size", 4, "--out", tmp_path / "quecc")
    assert code == 0, said
    saved = json.loads((tmp_path / "quecc" / "budgetprune_config.json").read_text())
    assert (saved["keep"], saved["options"]["layers"], saved["options"]["train_projector"]) == (16, [2, 4], False)
    code, said = run("eval", "--pruner", tmp_path / "quecc", "-m", "none,quecc,uniform", "-k", 8, "--samples", 6,
                     "--latency-batch", 2, "--out", tmp_path / "eval")
    assert code == 0, said
    records = [json.loads(line) for line in (tmp_path / "eval" / "records.jsonl").read_text().splitlines()]
    assert [(r["method"], r["keep"]) for r in records] == [("none", 64), ("quecc", 16), ("uniform", 8)]
    none, quecc, uniform = records
    assert quecc["kept_recall"] is None and quecc["kept_mean"] == 16
    assert uniform["prefill_flops"] < quecc["prefill_flops"] < none["prefill_flops"]
    code, said = run("report", tmp_path / "eval")
    assert code == 0 and "quecc" in (tmp_path / "eval" / "report.html").read_text()
    for wrong, match in ((("--option", "layers"), "option must be key=value with a key out of layers, heads"),
                         (("--option", "heads=2", "--option", "heads=4"), "option heads must be given once"),
                         (("--tau", 2.0), "quecc takes the options"),
                         (("--keep", 5), "keep must be 16, 4, 1 for quecc")):
        arguments = ("--keep", 16, *wrong) if wrong[0] != "--keep" else wrong
        code, said = run("train", "--method", "quecc", *arguments, "--steps", 2, "--out", tmp_path / "wrong")
        assert code == 2 and match in said, said


def test_cost_prices_compression_with_its_question(monkeypatch, capfd):
    from budgetprune import cli

    def cells(*arguments):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("sys.argv", ["budgetprune", "cost", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        out = capfd.readouterr()
        row = [line for line in out.out.splitlines() if line.startswith("│ 36")]
        return float(row[0].split("│")[4].replace(",", "")) if row else out.err

    plain, quecc, short = cells("-k", "36"), cells("-k", "36", "-m", "quecc"), cells("-k", "36", "-m", "quecc",
                                                                                     "--text", "32")
    assert plain < cells("-k", "36", "-m", "resampler") < quecc and short < quecc
    allowed = "keep must be 144, 64, 36, 16, 9, 4, 1 for quecc on 24 x 24 patches"
    assert f"{allowed}, got 35" in cells("-k", "35", "-m", "quecc")
    assert "crops must be 1 with quecc" in cells("-k", "36", "-m", "quecc", "--crops", "2")
