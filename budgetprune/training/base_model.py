"""A LLaVA of half a million parameters for a task that draws its images: small enough for minutes on a CPU, yet the
real architecture, so a method that works on it has gone through the same code as on a large one.

Dimensions: B images, N patches, Q questions about one image, T text length, C channels.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from budgetprune.tasks import Task
from budgetprune.tasks.drawn import Drawings, drawn

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
FIRST = "digits"  # the task that is meant where none is named
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
CHAT = ("{% for message in messages %}{% if message.content is string %}{{ message.content + ' ' }}{% else %}"
        "{% for part in message.content %}{{ '<image> ' if part.type == 'image' else part.text + ' ' }}{% endfor %}"
        "{% endif %}{% if message.role == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}")
FEATURE_LAYER = -2
LOG = "train_log.jsonl"  # beside every model that train_base made
TEST_SEED = 9
log = logging.getLogger(__name__)


def build_base(task: str | Task = FIRST, seed: int = 0):
    """An untrained LlavaForConditionalGeneration and its LlavaProcessor for a task; `seed` draws the weights.

    As LLaVA-1.5 (Liu et al., CVPR 2024): CLIP tower, the patch features of its last but one layer without CLS, a
    two-layer GELU projector, a Llama. The tokenizer knows the task's words and five more; a prompt reads "<image> which
    digit is red".
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    task = drawn(task)
    words = (*SPECIAL, *task.drawings.words)
    processor = _build_processor(words, task.side, task.patch_size)
    ids = {name: words.index(word) for name, word in
           (("pad_token_id", "<pad>"), ("bos_token_id", "<s>"), ("eos_token_id", "</s>"))}
    vision = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                              image_size=task.side, patch_size=task.patch_size, projection_dim=64)
    text = LlamaConfig(vocab_size=len(words), hidden_size=96, intermediate_size=192, num_hidden_layers=4,
                       num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
                       initializer_range=0.1, **ids)  # width ** -0.5: the 0.02 of wide models is slow here
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=words.index("<image>"),
                         vision_feature_layer=FEATURE_LAYER, vision_feature_select_strategy="default",
                         image_seq_length=task.tokens, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.update(do_sample=False, max_new_tokens=2, **ids)  # an answer and </s>
    return model.eval(), processor


def _build_processor(words, side, patch_size):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # needs no torchvision

    split = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    split.normalizer, split.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    split.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.index("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=split, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left", model_input_names=["input_ids", "attention_mask"])
    image = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side},
                                  image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(image, tokenizer, patch_size=patch_size, vision_feature_select_strategy="default",
                          num_additional_image_tokens=1, chat_template=CHAT)


def batch_inputs(drawings: Drawings, processor, *, learn_end: bool = False, device=None) -> dict[str, Tensor]:
    """Inputs of a batch for the language-model loss, all questions about an image in one sequence.

    The sequence is that of "<s> <image>*N which digit is red 7 </s> which digit ...", and padding behind those that
    are shorter than others. Causality makes its first question exactly the prompt of a question asked alone.

    Args:
        drawings: B images, as a task's `draw` returns them.
        processor: whose tokenizer names the ids.
        learn_end: also put a label on the </s> behind each answer, so that generation learns to stop.
        device: of the returned tensors; default the CPU.

    Returns:
        input_ids, attention_mask, labels: int64 [B, T], labels -100 but at the answers; pixel_values: float32
        [B, 3, side, side], the same bits as from the processor.
    """
    names = processor.tokenizer.convert_tokens_to_ids
    words = np.array([*names(list(drawings.words)), -1])  # -1, no word, stays -1
    questions, answers = (words[part] for part in drawings.turns())
    end = np.full((*questions.shape[:2], 1), names("</s>"))
    turns = np.concatenate([questions, answers, end], 2)
    learnt = np.concatenate([np.zeros_like(questions), answers >= 0, end * 0 + learn_end], 2).astype(bool)
    turns, learnt = (part.reshape(len(turns), -1) for part in (turns, learnt))
    order = np.argsort(turns < 0, 1, kind="stable")  # words first, in the order they have
    longest = (turns >= 0).sum(1).max(initial=0)
    turns, learnt = (np.take_along_axis(part, order, 1)[:, :longest] for part in (turns, learnt))
    count, patches = len(turns), np.full(processor_tokens(processor), names("<image>"))
    start = np.tile([names("<s>"), *patches], (count, 1))
    ids = np.concatenate([start, turns], 1)
    labels = np.concatenate([np.full_like(start, -100), np.where(learnt, turns, -100)], 1)
    inputs = {"input_ids": np.where(ids < 0, names("<pad>"), ids), "labels": labels,
              "pixel_values": drawings.pixel_values(), "attention_mask": (ids >= 0).astype(np.int64)}
    return {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}


def processor_tokens(processor) -> int:
    """N: the image tokens that the processor writes for one image."""
    return (processor.image_processor.crop_size["height"] // processor.patch_size) ** 2


@torch.no_grad()
def held_out(model, processor, task: str | Task = FIRST, images: int = 256, seed: int = TEST_SEED,
             batch: int = 128) -> dict[str, float]:
    """{"accuracy": share of right answers, and what else the task's summary says}, on images of the test split, each
    question in a prompt of its own and its answer generated."""
    task, was_training, said = drawn(task), model.training, []
    samples = task.samples("test", images * task.questions, seed)
    model.eval()
    for start in range(0, len(samples), batch):
        part = samples[start:start + batch]
        inputs = processor(text=[f"<image> {sample.question}" for sample in part], padding=True,
                           images=[sample.image for sample in part], return_tensors="pt").to(model.device)
        new = model.generate(**inputs, do_sample=False, max_new_tokens=task.new_tokens)
        said += processor.batch_decode(new[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    model.train(was_training)
    right = [task.score(reply, sample) for reply, sample in zip(said, samples, strict=True)]
    return {"accuracy": sum(right) / len(right), **task.summary(said, samples)}


def user_base_dir(task: str = FIRST) -> Path:
    """Where train_base writes and load_base looks: this user's cache directory for the package."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("budgetprune")) / f"{task}-llava"


def find_base(path=None, task: str = FIRST) -> tuple[Path, str]:
    """The directory load_base would read, and which it is: "given", "cache" (own training) or "bundled".

    Raises:
        FileNotFoundError: `path` was given, but no finished model is there; or none has been trained for the task.
    """
    places = [(Path(path), "given")] if path is not None else [
        (user_base_dir(task), "cache"), (CHECKPOINTS / f"{task}-llava", "bundled")]
    for place, kind in places:
        if (place / "config.json").is_file() and (place / "model.safetensors").is_file():
            return place, kind
    tried = ", ".join(str(place) for place, _ in places)
    raise FileNotFoundError(f"no {task} LLaVA (config.json, model.safetensors) in {tried}")


def load_base(path=None, task: str | None = None):
    """(model, processor) from `path`, else from this user's own training, else from the package; logs which.

    Args:
        path: folder of a model. task: which it must know; without a path, by default the first there was.

    Raises:
        FileNotFoundError: see find_base.
        ValueError: the model does not know the words of the task.
    """
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    from transformers.utils import logging as loading

    place, kind = find_base(path, task or FIRST)
    log.info("%s LLaVA: %s, %s", task or ("small" if path else FIRST), kind, place)
    shown = loading.is_progress_bar_enabled()
    loading.disable_progress_bar()  # half a megabyte is there before a bar is
    model = LlavaForConditionalGeneration.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    if shown:
        loading.enable_progress_bar()
    processor = LlavaProcessor.from_pretrained(place, local_files_only=True)
    known = processor.tokenizer.get_vocab()
    if unknown := [word for word in (drawn(task).drawings.words if task else ()) if word not in known]:
        raise ValueError(f"model must be a LLaVA trained for {task}, got {place}, which does not know {unknown[0]!r}")
    return model.eval(), processor
