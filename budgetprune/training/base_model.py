"""A LLaVA of half a million parameters, trained here on the digits task: small enough for minutes on a CPU, yet the
real architecture, so a method that works on it has gone through the same code as on a large one.

Dimensions: B images, N patches, Q questions about one image, T text length, C channels.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from budgetprune.tasks.digits import COLOURS, PATCH, QUESTIONS, SIZE, TOKENS, Canvases, draw

BUNDLED = Path(__file__).resolve().parents[1] / "checkpoints" / "digits-llava"
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", *COLOURS, "which", "digit", "is", *"0123456789")
CHAT = ("{% for message in messages %}{% if message.content is string %}{{ message.content + ' ' }}{% else %}"
        "{% for part in message.content %}{{ '<image> ' if part.type == 'image' else part.text + ' ' }}{% endfor %}"
        "{% endif %}{% if message.role == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}")
FEATURE_LAYER = -2
TURN = 6  # words of a question with its answer: "which digit is red 7 </s>"
TEST_SEED = 9
log = logging.getLogger(__name__)


def build_digits_llava(seed: int = 0):
    """An untrained LlavaForConditionalGeneration and its LlavaProcessor; `seed` draws the weights.

    As LLaVA-1.5 (Liu et al., CVPR 2024): CLIP tower, the patch features of its last but one layer without CLS, a
    two-layer GELU projector, a Llama. The tokenizer knows 24 words; a prompt reads "<image> which digit is red".
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    processor = _build_processor()
    ids = {name: WORDS.index(word) for name, word in
           (("pad_token_id", "<pad>"), ("bos_token_id", "<s>"), ("eos_token_id", "</s>"))}
    vision = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                              image_size=SIZE, patch_size=PATCH, projection_dim=64)
    text = LlamaConfig(vocab_size=len(WORDS), hidden_size=96, intermediate_size=192, num_hidden_layers=4,
                       num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
                       initializer_range=0.1, **ids)  # width ** -0.5: the 0.02 of wide models is slow here
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=WORDS.index("<image>"),
                         vision_feature_layer=FEATURE_LAYER, vision_feature_select_strategy="default",
                         image_seq_length=TOKENS, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.update(do_sample=False, max_new_tokens=2, **ids)  # a digit and </s>
    return model.eval(), processor


def _build_processor():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # needs no torchvision

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left", model_input_names=["input_ids", "attention_mask"])
    image = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE},
                                  image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(image, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
                          num_additional_image_tokens=1, chat_template=CHAT)


def digits_batch_inputs(canvases: Canvases, processor, *, learn_end: bool = False, device=None) -> dict[str, Tensor]:
    """Inputs of a batch for the language-model loss, all questions about an image in one sequence.

    The sequence is that of "<s> <image>*N which digit is red 7 </s> which digit ...", T = 1 + N + 6 Q. Causality
    makes its first question exactly the prompt of a question asked alone.

    Args:
        canvases: B images, as `draw` returns them.
        processor: whose tokenizer names the ids.
        learn_end: also put a label on the </s> behind each answer, so that generation learns to stop.
        device: of the returned tensors; default the CPU.

    Returns:
        input_ids, attention_mask, labels: int64 [B, T], labels -100 but at the answers; pixel_values: float32
        [B, 3, 64, 64], the same bits as from the processor.
    """
    def ids(words):
        return torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(words)))

    count, questions = canvases.answers.shape
    turns = ids(("which", "digit", "is", "<pad>", "<pad>", "</s>")).repeat(count, questions, 1)
    turns[..., 3] = ids(COLOURS)[torch.from_numpy(canvases.colours)]
    turns[..., 4] = ids("0123456789")[torch.from_numpy(canvases.answers)]
    labels = torch.full_like(turns, -100)
    learnt = slice(4, 6 if learn_end else 5)
    labels[..., learnt] = turns[..., learnt]
    start = ids(["<s>"] + ["<image>"] * TOKENS).repeat(count, 1)
    inputs = {"input_ids": torch.cat([start, turns.flatten(1)], 1),
              "labels": torch.cat([torch.full_like(start, -100), labels.flatten(1)], 1),
              "pixel_values": torch.from_numpy(canvases.pixel_values())}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@torch.no_grad()
def held_out_accuracy(model, processor, images: int = 256, seed: int = TEST_SEED, batch: int = 128) -> float:
    """Share of right answers on digits never trained on, each question in a prompt of its own."""
    right, was_training = 0, model.training
    model.eval()
    for start in range(0, images, batch):
        canvases = draw("test", min(batch, images - start), seed, start=start)
        inputs = digits_batch_inputs(canvases, processor, device=model.device)
        head = inputs["input_ids"][:, :1 + TOKENS]
        for question in range(QUESTIONS):
            first = 1 + TOKENS + TURN * question
            ids = torch.cat([head, inputs["input_ids"][:, first:first + TURN - 2]], 1)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"],
                           logits_to_keep=1).logits
            right += (logits[:, -1].argmax(-1) == inputs["input_ids"][:, first + TURN - 2]).sum().item()
    model.train(was_training)
    return right / (images * QUESTIONS)


def user_base_dir() -> Path:
    """Where train_base writes and load_base looks: this user's cache directory for the package."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("budgetprune")) / "digits-llava"


def find_base(path=None) -> tuple[Path, str]:
    """The directory load_base would read, and which it is: "given", "cache" (own training) or "bundled".

    Raises:
        FileNotFoundError: `path` was given, but no finished model is there.
    """
    places = [(Path(path), "given")] if path is not None else [(user_base_dir(), "cache"), (BUNDLED, "bundled")]
    for place, kind in places:
        if (place / "config.json").is_file() and (place / "model.safetensors").is_file():
            return place, kind
    tried = ", ".join(str(place) for place, _ in places)
    raise FileNotFoundError(f"no digits LLaVA (config.json, model.safetensors) in {tried}")


def load_base(path=None):
    """(model, processor) from `path`, else from this user's own training, else from the package; logs which."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    from transformers.utils import logging as loading

    place, kind = find_base(path)
    log.info("digits LLaVA: %s, %s", kind, place)
    shown = loading.is_progress_bar_enabled()
    loading.disable_progress_bar()  # half a megabyte is there before a bar is
    model = LlavaForConditionalGeneration.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    if shown:
        loading.enable_progress_bar()
    return model.eval(), LlavaProcessor.from_pretrained(place, local_files_only=True)
