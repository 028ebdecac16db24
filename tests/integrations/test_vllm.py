"""The plugin in the real vLLM: how many places an image gets, and what the encoder puts there.

Tower and projector run on a CPU; the language model's attention has only GPU backends in the usual wheel, so there a
stand-in takes its place, and what is said about generated text needs a GPU.
"""

import os

import pytest
import torch
from hosts import ROOT, declare_entry_points, python

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
pytest.importorskip("vllm", reason="vLLM is not installed, and too large to install for this test")
try:
    import vllm.model_executor.models.llava as stock
    from vllm.config import DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.multimodal import MULTIMODAL_REGISTRY
except ImportError as error:
    pytest.skip(f"vLLM is here, but its LLaVA cannot be imported: {error}", allow_module_level=True)

from PIL import Image
from safetensors.torch import load_file

import budgetprune
from budgetprune.integrations import register_vllm
from budgetprune.tasks.digits import draw
from budgetprune.training import load_base

MODEL = str(ROOT / "budgetprune" / "checkpoints" / "digits-llava")
ARCHITECTURE = "BudgetpruneLlava"


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(image) for image in draw("test", 2, seed=3).images]


def configured(**pruning):
    register_vllm()
    return ModelConfig(model=MODEL, dtype="float32", enforce_eager=True,
                       hf_overrides={"architectures": [ARCHITECTURE], "budgetprune": pruning})


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The process group that vLLM's layers ask for."""
    with set_current_vllm_config(VllmConfig(model_config=configured(method="uniform", keep=6),
                                            device_config=DeviceConfig("cpu"))):
        init_distributed_environment(1, 0, f"file://{tmp_path_factory.mktemp('group') / 'store'}", 0, backend="gloo")
        initialize_model_parallel(1)


def encoder(config, monkeypatch):
    """vLLM's model as the plugin makes it, with the checkpoint's tower and projector."""
    from budgetprune.integrations.vllm import PrunedLlava

    class StandIn(torch.nn.Module):
        make_empty_intermediate_tensors = None

    monkeypatch.setattr(stock, "init_vllm_registered_model", lambda **options: StandIn())
    whole = VllmConfig(model_config=config, device_config=DeviceConfig("cpu"))
    with set_current_vllm_config(whole):
        model = PrunedLlava(vllm_config=whole)
    for module in model.modules():
        if hasattr(module, "forward_native"):  # without a platform vLLM takes the CUDA form of every layer
            module._forward_method = module.forward_native
    weights = load_file(MODEL + "/model.safetensors")
    # The names that LLaVA-1.5 has on the hub; transformers 5.23 writes them without `vision_model`.
    weights = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()
               if "vision_tower" in name or "projector" in name}
    model.load_weights(weights.items())
    return model


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
@pytest.mark.parametrize("method", ["uniform", "prumerge", "prumerge_plus"])
def test_the_encoder_gives_what_the_pruned_transformers_model_sees(images, one_process, monkeypatch, method):
    from budgetprune.models.encode import encode

    model = encoder(configured(method=method, keep=6), monkeypatch)
    reference, processor = load_base(MODEL)
    inputs = processor(images=images, text=["<image> which digit is red"] * 2, return_tensors="pt")
    ours = model.embed_multimodal(pixel_values=inputs["pixel_values"])
    with budgetprune.prune(reference, method, keep=6):
        theirs = encode(reference, dict(inputs), gates=False)["mm_encoder_outputs"]["image"].pooler_output
    assert ours.shape == (2, 6, 96)
    torch.testing.assert_close(ours, torch.stack(list(theirs)), rtol=1e-4, atol=1e-4)


def test_the_tower_is_as_deep_as_its_method_needs(one_process, monkeypatch):
    for method, blocks in (("uniform", 3), ("prumerge", 4)):
        model = encoder(configured(method=method, keep=6), monkeypatch)
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

    for file in os.listdir(MODEL):
        if not file.endswith(".safetensors"):
            (tmp_path / file).write_bytes((ROOT / "budgetprune" / "checkpoints" / "digits-llava" / file).read_bytes())
    weights = load_file(MODEL + "/model.safetensors")
    save_file({name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()},
              tmp_path / "model.safetensors", {"format": "pt"})
    register_vllm()
    engine = LLM(str(tmp_path), dtype="float32", enforce_eager=True, gpu_memory_utilization=0.2, max_model_len=256,
                 hf_overrides={"architectures": [ARCHITECTURE], "budgetprune": {"method": "uniform", "keep": 16}})
    asked = [{"prompt": "<image> which digit is red", "multi_modal_data": {"image": image}} for image in images]
    said = [out.outputs[0].text.strip() for out in engine.generate(asked, SamplingParams(temperature=0, max_tokens=1))]
    model, processor = load_base(MODEL)
    inputs = processor(images=images, text=["<image> which digit is red"] * 2, return_tensors="pt")
    with budgetprune.prune(model, "uniform", keep=16):
        tokens = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    assert said == [processor.tokenizer.decode([token]) for token in tokens]
