"""prune_depth: what runs is what a model of those layers alone would say, in every form, and the rest does not run."""

import copy

import pytest
import torch
from families import make_inputs, make_model
from tiny import IMAGE_TOKEN, answered, make_batch, make_llava, state_of

import budgetprune
from budgetprune.models import depth_layers

FORMS = {"layers": {"form": "layers", "prefix": 1}, "heads": {"form": "heads", "prefix": 1, "rank": 2}}
BUDGETS = {"layers": [2, 3], "heads": [4, 6]}  # of 4 layers, of 8 units
LLMS = ["llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def pruned(model, form, budget, **options):
    return budgetprune.prune_depth(model, budget=budget, **FORMS[form], **options)


def alone(model, embeds, latency, plan, row):
    """Logits of one prompt [1, L, C] by a decoder of the layers that run, heads silenced by zeros in its weights."""
    twin = copy.deepcopy(model.model.language_model)
    for number, layer in enumerate(twin.layers):
        if plan.gate.dim() == 4 and number >= 1:
            gate = plan.gate[row, number - 1]
            layer.self_attn.o_proj.weight.mul_(gate[0].repeat_interleave(16))
            layer.mlp.down_proj.weight.mul_(gate[1].repeat_interleave(layer.mlp.down_proj.in_features // 4))
    twin.layers = torch.nn.ModuleList(layer for layer, runs in zip(twin.layers, plan.runs[row]) if runs)
    twin.config = copy.copy(twin.config)
    twin.config.num_hidden_layers = len(twin.layers)
    hidden = twin(inputs_embeds=torch.cat([embeds, latency], 1), use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, [*range(embeds.shape[1] - 1), embeds.shape[1]]])


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("form", FORMS)
def test_each_row_says_what_a_model_of_its_layers_alone_would(llava, form, padding):
    batch, seen = make_batch(padding=padding), {}
    handle = llava.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    llava(**batch)
    handle.remove()
    embeds = seen["inputs_embeds"]
    with pruned(llava, form, BUDGETS[form]) as pruning:
        logits, plan = llava(**batch).logits, pruning.plan
        units = plan.gate.flatten(1).sum(1) / (1 if form == "layers" else 4)
        assert units.tolist() == plan.counts == ([1, 2] if form == "layers" else [2, 4])
        latency = pruning.scheduler.token(plan.counts)
    for row, exists in enumerate(batch["attention_mask"].bool()):
        expected = alone(llava, embeds[row, exists][None], latency[row][None, None], plan, row)
        torch.testing.assert_close(logits[row, exists][None], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", LLMS)
def test_all_layers_with_answers_from_the_prompt_are_bit_equal_to_the_model_and_fewer_are_not(name, padding):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, padding=padding)
    there, expected = inputs["attention_mask"].bool(), model(**inputs).logits
    with pruned(model, "layers", 4, answer_from="prompt") as pruning:
        assert torch.equal(model(**inputs).logits[there], expected[there])
        pruning.set_budget(0.5)
        assert not torch.equal(model(**inputs).logits[there], expected[there])
        assert pruning.plan.runs.sum(1).tolist() == [2, 2]


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_layers_that_no_row_runs_do_nothing_and_cache_nothing(llava, form):
    batch, calls = make_batch(), []
    handles = [part.register_forward_hook(lambda module, args, output, n=number: calls.append((n, len(output[0]))))
               for number, layer in enumerate(llava.model.language_model.layers) for part in (layer.self_attn,)]
    handles += [layer.mlp.register_forward_hook(lambda module, args, output, n=number: calls.append((n, len(output))))
                for number, layer in enumerate(llava.model.language_model.layers)]
    with pruned(llava, form, 1 if form == "layers" else 2) as pruning:  # the prefix alone
        cache = llava(**batch).past_key_values
        assert {n for n, _ in calls} == {0}
        assert [cache.get_seq_length(n) for n in range(4)] == [batch["input_ids"].shape[1] + 1, 0, 0, 0]
        pruning.set_budget(BUDGETS[form])
        calls.clear()
        cache = llava(**batch).past_key_values
        runs = pruning.plan.runs
        rows = {n: int(runs[:, n].sum()) for n in range(4)}
        for number in range(4):
            mine = [size for n, size in calls if n == number and rows[n]]
            assert len(mine) == (2 if rows[number] else 0), "attention and MLP, once each"
            assert (cache.get_seq_length(number) > 0) == (rows[number] > 0)
        assert [size for n, size in calls if n and size != 2] == [rows[n] for n, size in calls if n and size != 2]
        assert all(size in (rows[n], 2) for n, size in calls)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_rows_that_differ_enter_a_layer_alone(llava):
    sizes = {}
    handles = [layer.mlp.register_forward_pre_hook(lambda module, args, n=n: sizes.update({n: len(args[0])}))
               for n, layer in enumerate(llava.model.language_model.layers)]
    with pruned(llava, "layers", [1, 4]) as pruning:
        llava(**make_batch())
        assert pruning.plan.runs.tolist() == [[True, False, False, False], [True] * 4]
    assert sizes == {0: 2, 1: 1, 2: 1, 3: 1}
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("form", FORMS)
def test_gates_in_training_equal_what_is_skipped_at_inference_and_teach_every_weight(llava, form, padding):
    batch = answered(make_batch(padding=padding))
    with pruned(llava, form, BUDGETS[form]) as pruning:
        with torch.no_grad():
            skipped, plan = llava(**batch), pruning.plan
        llava.budget_depth.set_noise(False)
        gated = llava.train()(**batch, use_cache=False)
        llava.eval()
        assert torch.equal(pruning.plan.gate, plan.gate) and torch.equal(pruning.plan.runs, plan.runs)
        there = batch["attention_mask"].bool()
        torch.testing.assert_close(gated.logits[there], skipped.logits[there], atol=1e-5, rtol=1e-4)
        gated.loss.backward()
        for name, parameter in llava.budget_depth.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_generated_words_are_those_that_a_forward_over_prompt_and_answer_says(name, form):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, words=(5, 3))
    length = inputs["input_ids"].shape[1]
    with pruned(model, form, BUDGETS[form]) as pruning:
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False, suppress_tokens=[IMAGE_TOKEN, 101])
        planned = pruning.plan.runs
        ids = tokens[:, :-1]
        more = {"input_ids": ids, "labels": ids.index_fill(1, torch.arange(length), -100)}
        for key in ("attention_mask", "mm_token_type_ids"):
            if key in inputs:
                tail = torch.full_like(ids[:, length:], int(key == "attention_mask"))
                more[key] = torch.cat([inputs[key], tail.to(inputs[key].dtype)], 1)
        logits = model(**{**inputs, **more}).logits
        assert torch.equal(pruning.plan.runs, planned), "the plan is made before the answer"
        logits[..., [IMAGE_TOKEN, 101]] = -torch.inf
        assert torch.equal(logits[:, length - 1:].argmax(-1), tokens[:, length:])


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_says_the_same_whoever_stands_beside_it(llava, form, beams):
    batch = make_batch(text=(5, 3, 4))
    budgets = [BUDGETS[form][0], BUDGETS[form][1], BUDGETS[form][0]]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "suppress_tokens": [IMAGE_TOKEN]}
    with pruned(llava, form, [b for b in budgets for _ in range(beams)]) as pruning:
        together = llava.generate(**batch, **options)[:, -4:]
        for row, budget in enumerate(budgets):
            pruning.set_budget(budget)
            there = batch["attention_mask"][row].bool()
            one = {name: batch[name][row][there][None] for name in ("input_ids", "attention_mask")}
            own = llava.generate(**one, pixel_values=batch["pixel_values"][row][None], **options)[:, -4:]
            assert torch.equal(own[0], together[row])


@torch.no_grad()
def test_a_cached_prompt_padded_on_the_right_goes_on_like_one_padded_on_the_left(llava):
    left, right = make_batch(padding="left"), make_batch(padding="right")
    new = torch.tensor([[7, 8], [9, 10]])
    with pruned(llava, "layers", [3, 2]):
        said = []
        for batch in (left, right):
            mask, cache = batch["attention_mask"], None
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            cache = llava(**batch, position_ids=positions).past_key_values
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            where = positions.amax(1, keepdim=True) + torch.arange(1, 3)
            said.append(llava(input_ids=new, attention_mask=mask, position_ids=where, past_key_values=cache).logits)
    torch.testing.assert_close(said[0], said[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_second_turn_goes_on_with_the_plan_of_the_first(llava):
    batch, new = make_batch(), torch.tensor([[7, 8, 9], [9, 10, 11]])
    length, options = batch["input_ids"].shape[1], {"do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    with pruned(llava, "layers", [3, 2]) as pruning:
        first = llava.generate(**batch, max_new_tokens=3, return_dict_in_generate=True, **options)
        ids, cache, planned = torch.cat([first.sequences, new], 1), first.past_key_values, pruning.plan.runs
        mask = torch.cat([batch["attention_mask"], torch.ones_like(ids[:, length:])], 1)
        given = {"attention_mask": mask, "past_key_values": cache, "max_new_tokens": 3, **options}
        with pytest.raises(ValueError, match="give generate.. the new tokens alone"):
            llava.generate(ids, **{**given, "past_key_values": copy.deepcopy(cache)})
        second = llava.generate(ids[:, length + 2:], **given)[:, -3:]
        whole = torch.cat([ids, second[:, :-1]], 1)
        labels = whole.index_fill(1, torch.arange(length), -100)
        mask = torch.cat([mask, torch.ones_like(second[:, :-1])], 1)
        logits = llava(input_ids=whole, attention_mask=mask, pixel_values=batch["pixel_values"], labels=labels).logits
        assert torch.equal(pruning.plan.runs, planned)
        logits[..., IMAGE_TOKEN] = -torch.inf
        assert torch.equal(logits[:, -3:].argmax(-1), second)


@torch.no_grad()
def test_sampling_several_answers_of_one_cached_prompt_keeps_its_plan(llava):
    batch = make_batch()
    with pruned(llava, "heads", [4, 6]):
        cache = llava(**batch).past_key_values
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
        twice = copy.deepcopy(cache)
        twice.batch_repeat_interleave(2)
        new = torch.tensor([[7], [9]])
        once = llava(input_ids=new, attention_mask=mask, past_key_values=cache).logits
        both = llava(input_ids=new.repeat_interleave(2, 0), attention_mask=mask.repeat_interleave(2, 0),
                     past_key_values=twice).logits
    torch.testing.assert_close(both, once.repeat_interleave(2, 0), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_eager_attention_says_the_same():
    batch, said = make_batch(), []
    for backend in ("sdpa", "eager"):
        model = make_llava(backend)
        with pruned(model, "layers", [2, 3]):
            said.append(model(**batch).logits[batch["attention_mask"].bool()])
    torch.testing.assert_close(*said, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_mask_without_rows_as_flex_attention_has_it_leaves_the_other_rows_as_they_were():
    hidden, rows = torch.randn(3, 4, 8), torch.tensor([0, 2])
    out = depth_layers.for_rows(lambda x, **given: x + 1, hidden, rows, (), {"attention_mask": object()})
    assert torch.equal(out, hidden + torch.tensor([1.0, 0, 1])[:, None, None])


def test_gradient_checkpointing_changes_no_gradient():
    batch, gradients = answered(make_batch()), []
    for form in FORMS:
        for checkpoint in (False, True):
            model = make_llava()
            pruned(model, form, BUDGETS[form])
            if checkpoint:
                model.gradient_checkpointing_enable()
            torch.manual_seed(3)
            model.train()(**batch, use_cache=False).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        plain, again = gradients[-2:]
        assert plain.keys() == again.keys()
        for name in plain:
            torch.testing.assert_close(again[name], plain[name], atol=1e-6, rtol=1e-4)


def test_each_row_of_a_training_step_draws_its_budget(llava):
    batch = answered(make_batch(text=(4, 4, 4, 4)))
    pruned(llava, "layers", 4, train_budget=(2, 4))
    torch.manual_seed(0)
    counts = []
    for _ in range(6):
        llava.train()(**batch, use_cache=False)
        plan = llava.budget_depth.last_plan()
        assert plan.gate.sum(1).tolist() == plan.counts
        counts += plan.counts
    assert set(counts) == {1, 2, 3}


def test_an_earlier_answer_hears_nothing_of_a_later_question(llava):
    """Two turns in one sequence: published, the plan comes from before the last answer, and so knows the later turn."""
    batch = make_batch(text=(8, 8))
    ids = batch["input_ids"].clone()
    labels = ids.index_fill(1, torch.arange(ids.shape[1]), -100)
    labels[:, -6], labels[:, -1] = ids[:, -6], ids[:, -1]
    with pruned(llava, "layers", 3) as pruning, torch.no_grad():
        before = llava(**{**batch, "labels": labels}).logits[:, -7]
        plan = pruning.plan.runs
        ids[:, -3] = 11
        after = llava(**{**batch, "input_ids": ids, "labels": labels}).logits[:, -7]
        assert torch.equal(before, after) and torch.equal(plan, pruning.plan.runs)


@torch.no_grad()
def test_unpruning_leaves_nothing_behind(llava):
    batch = make_batch()
    expected = llava(**batch).logits
    before = state_of(llava)  # a model's first forward leaves attributes of its own
    for form in FORMS:
        with pruned(llava, form, BUDGETS[form]):
            llava(**batch)
        assert state_of(llava) == before and torch.equal(llava(**batch).logits, expected)
    assert not hasattr(llava, "budget_depth")


@torch.no_grad()
def test_a_layer_whose_forward_was_another_instances_gets_it_back(llava):
    layer, calls = llava.model.language_model.layers[2], []
    own = layer.forward
    layer.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    mine = layer.forward
    with pruned(llava, "layers", 4):
        llava(**make_batch())
    assert calls == [1] and layer.forward is mine


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_saved_scheduler_and_a_copy_plan_the_same(llava, tmp_path, form):
    batch = make_batch()
    with pruned(llava, form, BUDGETS[form], seed=5, tau=2.0, answer_from="prompt") as pruning:
        for parameter in llava.budget_depth.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        expected, plan = llava(**batch).logits, pruning.plan
        pruning.save_pretrained(tmp_path)
        twin = copy.deepcopy(llava)
    assert torch.equal(twin(**batch).logits, expected)
    budgetprune.unprune_depth(twin)
    with budgetprune.depth_from_pretrained(llava, tmp_path) as pruning:
        assert torch.equal(llava(**batch).logits, expected) and torch.equal(pruning.plan.gate, plan.gate)
        assert pruning.scheduler.options()["tau"] == 2.0
    with budgetprune.depth_from_pretrained(llava, tmp_path, budget=1.0) as pruning:
        llava(**batch)
        assert pruning.plan.runs.all()
    (tmp_path / "depth_config.json").write_text("{}")
    with pytest.raises(ValueError, match="depth_config.json is not what save_pretrained writes"):
        budgetprune.depth_from_pretrained(llava, tmp_path)


@pytest.mark.parametrize("arguments, match", [
    ({"budget": 1}, r"budget must be in \[2, 4\] layers, of which 2 always run"),
    ({"budget": [2, 5]}, r"budget must be in \[2, 4\] layers"), ({"budget": []}, "budget must hold at least one"),
    ({"budget": 3, "method": "x"}, "method must be one of 'adallava', got 'x'"),
    ({"budget": 3, "prefix": 4}, r"prefix must be in \[1, 3\]"),
    ({"budget": 4, "form": "heads"}, "rank must divide the 4 heads of a layer, got 8"),
    ({"budget": 3, "train_budget": (1, 4)}, r"budget must be in \[2, 4\] layers"),
])
def test_wrong_arguments_are_named_and_change_nothing(llava, arguments, match):
    before = state_of(llava)
    with pytest.raises(ValueError, match=match):
        budgetprune.prune_depth(llava, **arguments)
    assert state_of(llava) == before


@torch.no_grad()
def test_what_would_be_silently_wrong_is_refused(llava):
    batch = make_batch()
    with pytest.raises(ValueError, match="prompt's tokens of PaliGemma.* see each other in both directions"):
        budgetprune.prune_depth(make_model("paligemma"), budget=3)
    moe = make_model("qwen3_vl_moe")
    before = state_of(moe)
    with pytest.raises(ValueError, match="form must be 'layers' for Qwen3VLMoe"):
        pruned(moe, "heads", 4)
    assert state_of(moe) == before
    cache = llava(**batch).past_key_values
    with pruned(llava, "layers", [2, 3, 4]) as pruning:
        with pytest.raises(ValueError, match="budget must have 2 entries, one per row of the prompt, got 3"):
            llava(**batch)
        with pytest.raises(ValueError, match="pruned already"):
            pruned(llava, "layers", 2)
        pruning.set_budget(3)
        one = {"input_ids": torch.tensor([[7], [8]])}
        with pytest.raises(ValueError, match="past_key_values must begin with a prompt that prune_depth saw"):
            llava(**one, past_key_values=cache)
        cache = llava(**batch).past_key_values
        with pytest.raises(ValueError, match="attention_mask must be over the 24 tokens .* and the 1 new ones, got 24"):
            llava(**one, attention_mask=batch["attention_mask"], past_key_values=cache)
        with pytest.raises(ValueError, match="dynamic"):
            llava.generate(**batch, max_new_tokens=2, cache_implementation="static", disable_compile=True)
    with pytest.raises(ValueError, match="model's depth is not pruned"):
        budgetprune.unprune_depth(llava)
    with pytest.raises(RuntimeError, match="not pruned any more"):
        pruning.set_budget(2)
