"""The plugin in the real vLLM: how many places an image gets, and what the encoder puts there.

Tower and projector run on a CPU; what is said about generated text needs a GPU.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hosts import declare_entry_points, python

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
pytest.importorskip("vllm", reason="vLLM is not installed, and too large to install for this test")
try:
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm_encoder import MODEL, configured, encoder, join_processes, weights
except ImportError as error:
    pytest.skip(f"vLLM is here, but its LLaVA cannot be imported: {error}", allow_module_level=True)

from PIL import Image

import budgetprune
from budgetprune.integrations import register_vllm
from budgetprune.tasks.digits import draw
from budgetprune.training import load_base

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(image) for image in draw("test", 2, seed=3).images]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    join_processes(tmp_path_factory.mktemp("group") / "store")


def test_vllm_finds_the_architecture_and_leaves_its_own_alone(tmp_path):
    declare_entry_points(tmp_path)
    result = python("from vllm.plugins import load_general_plugins; load_general_plugins()\n"
                    "from vllm import ModelRegistry\n"
                    "for name in ('BudgetpruneLlava', 'LlavaForConditionalGeneration'):\n"
                    "    print(ModelRegistry.models[name].module_name)", tmp_path)
    found = result.stdout.splitlines()
    assert found == ["budgetprune.integrations.vllm", "vllm.model_executor.models.llava"], result.stderr


@pytest.mark.parametrize("keep, count", [(6, 6), (0.25, 16), (0, 1), (64, 64), (500, 64)])
def test_an_image_gets_as_many_places_as_tokens_are_kept(images, keep, count):
    processor = MULTIMODAL_REGISTRY.create_processor(configured(method="prumerge_plus", keep=keep))
    prompt = "<image> which digit is red <image> which digit is blue"
    processed = processor(prompt, mm_items=processor.info.parse_mm_data({"image": images}))
    ids = processed["prompt_token_ids"]
    assert ids.count(4) == 2 * count and len(ids) == 1 + 2 * (count + 4)
    assert [place.length for place in processed["mm_placeholders"]["image"]] == [count, count]


@torch.no_grad()
@pytest.mark.parametrize("method", ["uniform", "prumerge", "prumerge_plus", "visionzip", "divprune", "tome"])
def test_the_encoder_gives_what_the_pruned_transformers_model_sees(images, one_process, method):
    from budgetprune.models.encode import encode

    model = encoder(configured(method=method, keep=6))
    reference, processor = load_base(MODEL)
    inputs = processor(images=images, text=["<image> which digit is red"] * 2, return_tensors="pt")
    ours = model.embed_multimodal(pixel_values=inputs["pixel_values"])
    with budgetprune.prune(reference, method, keep=6):
        theirs = encode(reference, dict(inputs), gates=False)["mm_encoder_outputs"]["image"].pooler_output
    assert ours.shape == (2, 6, 96)
    torch.testing.assert_close(ours, torch.stack(list(theirs)), rtol=1e-4, atol=1e-4)


def test_processes_that_share_the_attention_heads_choose_the_same(images, one_process, tmp_path):
    _, processor = load_base(MODEL)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    torch.save(pixels, tmp_path / "pixels.pt")
    code = f"import runpy; runpy.run_path({str(HERE / 'vllm_encoder.py')!r}, run_name='__main__')"
    with ThreadPoolExecutor() as threads:
        runs = list(threads.map(lambda rank: python(code, tmp_path, tmp_path, rank, 2, "prumerge"), range(2)))
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    with torch.no_grad():
        alone = encoder(configured(method="prumerge", keep=6)).embed_multimodal(pixel_values=pixels)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-4, atol=1e-4)


def test_the_tower_is_as_deep_as_its_method_needs(one_process):
    for method, blocks in (("uniform", 3), ("visionzip", 3), ("prumerge", 4)):
        model = encoder(configured(method=method, keep=6))
        assert len(model.vision_tower.vision_model.encoder.layers) == blocks
        assert model._tower_model_names == ["vision_tower", "multi_modal_projector"]


@pytest.mark.parametrize("pruning, message", [
    ({"method": "fastv", "keep": 6}, "got fastv: it ranks inside the language model"),
    ({"method": "prumerge"}, "keep must be given"),
    ({"keep": 6}, r"hf_overrides must hold budgetprune=\{'method': .., 'keep': ..\}"),
])
def test_what_cannot_be_served_is_refused_before_weights_are_loaded(pruning, message):
    processor = MULTIMODAL_REGISTRY.create_processor(configured(**pruning))
    with pytest.raises(ValueError, match=message):
        processor.info.get_num_image_tokens(image_width=64, image_height=64)


@pytest.mark.cuda
def test_generated_text_is_that_of_the_pruned_transformers_model(images, tmp_path):
    """Needs a GPU: vLLM's wheel has no attention backend for another device."""
    from safetensors.torch import save_file
    from vllm import LLM, SamplingParams

    for file in MODEL.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    save_file(weights(), tmp_path / "model.safetensors", {"format": "pt"})
    register_vllm()
    engine = LLM(str(tmp_path), dtype="float32", enforce_eager=True, gpu_memory_utilization=0.2, max_model_len=256,
                 hf_overrides={"architectures": ["BudgetpruneLlava"], "budgetprune": {"method": "uniform", "keep": 16}})
    asked = [{"prompt": "<image> which digit is red", "multi_modal_data": {"image": image}} for image in images]
    said = [out.outputs[0].text.strip() for out in engine.generate(asked, SamplingParams(temperature=0, max_tokens=1))]
    model, processor = load_base(MODEL)
    inputs = processor(images=images, text=["<image> which digit is red"] * 2, return_tensors="pt")
    with budgetprune.prune(model, "uniform", keep=16):
        tokens = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    assert said == [processor.tokenizer.decode([token]) for token in tokens]
