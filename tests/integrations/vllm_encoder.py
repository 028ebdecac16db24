"""vLLM's LLaVA as the plugin makes it, on a CPU and without its language model; as a program, one of several processes.

The language model's attention has only GPU backends in the usual wheel, so a stand-in takes its place.
"""

import sys
from pathlib import Path
from unittest import mock

import torch
import vllm.model_executor.models.llava as stock
from safetensors.torch import load_file
from vllm.config import DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel

from budgetprune.integrations import register_vllm

MODEL = Path(__file__).resolve().parents[2] / "budgetprune" / "checkpoints" / "digits-llava"


def configured(**pruning) -> ModelConfig:
    register_vllm()
    return ModelConfig(model=str(MODEL), dtype="float32", enforce_eager=True,
                       hf_overrides={"architectures": ["BudgetpruneLlava"], "budgetprune": pruning})


def join_processes(store, rank: int = 0, processes: int = 1) -> None:
    """The process group that vLLM's layers ask for."""
    with set_current_vllm_config(VllmConfig(model_config=configured(method="uniform", keep=6),
                                            device_config=DeviceConfig("cpu"))):
        init_distributed_environment(processes, rank, f"file://{store}", rank, backend="gloo")
        initialize_model_parallel(processes)


def weights() -> dict:
    """The checkpoint under the names that LLaVA-1.5 has on the hub; transformers 5.23 writes no `vision_model`."""
    return {name.replace("vision_tower.", "vision_tower.vision_model."): value
            for name, value in load_file(MODEL / "model.safetensors").items()}


def encoder(config):
    from budgetprune.integrations.vllm import PrunedLlava

    class StandIn(torch.nn.Module):
        make_empty_intermediate_tensors = None

    whole = VllmConfig(model_config=config, device_config=DeviceConfig("cpu"))
    with set_current_vllm_config(whole), \
            mock.patch.object(stock, "init_vllm_registered_model", lambda **options: StandIn()):
        model = PrunedLlava(vllm_config=whole)
    for module in model.modules():
        if hasattr(module, "forward_native"):  # without a platform vLLM takes the CUDA form of every layer
            module._forward_method = module.forward_native
    model.load_weights((name, value) for name, value in weights().items() if "vision" in name or "projector" in name)
    return model


if __name__ == "__main__":
    folder, rank, processes, method = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    join_processes(folder / "store", rank, processes)
    with torch.no_grad():
        split = encoder(configured(method=method, keep=6))
        assert split.vision_tower.vision_model.encoder.layers[-1].self_attn.tp_size == processes
        torch.save(split.embed_multimodal(pixel_values=torch.load(folder / "pixels.pt")), folder / f"{rank}.pt")
