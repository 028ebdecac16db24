"""Real processors of three families over a tokenizer of words, for the small random models of tests/families.py."""

from families import END, IMAGE, PAD, PINPOINTS, START

WORDS = {"<pad>": PAD, "<s>": 1, "</s>": 2, "<unk>": 3, "USER:": 4, "ASSISTANT:": 5, "<image>": IMAGE, "<v>": 101,
         "<vs>": START, "<ve>": END, "<|im_start|>": 104, "<|im_end|>": 105, "user": 6, "assistant": 7, "system": 8}
PLAIN = "what is this a cat dog red blue three answer the question now and then it said no yes"
# As llava-hf writes it, with nothing behind an answer; images come first.
VICUNA = ("{% for m in messages %}{{ m.role.upper() + ': ' }}"
          "{% for p in m.content if p.type == 'image' %}{{ '<image> ' }}{% endfor %}"
          "{% for p in m.content if p.type == 'text' %}{{ p.text + ' ' }}{% endfor %}{% endfor %}"
          "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
CHATML = ("{% for m in messages %}{{ '<|im_start|> ' + m.role + '\\n' }}{% for p in m.content %}"
          "{{ '<vs><image><ve>' if p.type == 'image' else p.text }}{% endfor %}{{ ' <|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|> assistant\\n' }}{% endif %}")


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {name: number for name, number in WORDS.items()}
    known |= {word: 20 + i for i, word in enumerate(dict.fromkeys(PLAIN.split()))}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<image>", "<v>", "<vs>", "<ve>", "<|im_start|>", "<|im_end|>", "</s>"],
        model_input_names=["input_ids", "attention_mask"])


def make_processor(family):
    import transformers as t
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    square = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, **normal}
    if family == "llava":
        return t.LlavaProcessor(CLIPImageProcessorPil(**square), tokenizer(), patch_size=7, chat_template=VICUNA,
                                vision_feature_select_strategy="default", num_additional_image_tokens=1)
    if family == "llava_next":
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        return t.LlavaNextProcessor(LlavaNextImageProcessorPil(**square, image_grid_pinpoints=PINPOINTS), tokenizer(),
                                    patch_size=7, vision_feature_select_strategy="default", chat_template=VICUNA,
                                    num_additional_image_tokens=1)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = tokenizer()
    words.image_token, words.video_token = "<image>", "<v>"
    images = Qwen2VLImageProcessorPil(patch_size=7, temporal_patch_size=2, merge_size=2, min_pixels=28 * 28,
                                      max_pixels=56 * 56, **normal)

    class WithoutVideos(t.Qwen2_5_VLProcessor):  # whose own reader of videos needs torchvision
        def check_argument_for_proper_class(self, name, argument):
            return type(argument)

    return WithoutVideos(images, words, chat_template=CHATML)
