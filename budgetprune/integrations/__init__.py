"""Plugins for the tools that others evaluate and serve with. Each host asks for its own by an entry point.

What stands here is what the entry points name. Hosts call it at every start, whether or not anyone wants to prune, so
it imports nothing but the host's registry; the file with the work is imported when its model is asked for.
"""


def lmms_eval_models():
    """Entry point of the group `lmms_eval.models`: `--model budgetprune_llava_hf`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    home = f"{__name__}.lmms_eval"
    return ModelManifest("budgetprune_llava_hf", chat_class_path=f"{home}.PrunedLlavaHfChat",
                         simple_class_path=f"{home}.PrunedLlavaHf")


def register_vllm() -> None:
    """Entry point of the group `vllm.general_plugins`: one more architecture, used only where a config names it."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("BudgetpruneLlava", f"{__name__}.vllm:PrunedLlava")
