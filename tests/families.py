"""One tiny random model of every family, and prompts with two images of different size where the family has such."""

import torch

IMAGE, VIDEO, START, END, PAD = 100, 101, 102, 103, 0
PINPOINTS = [[28, 28], [28, 56], [56, 28], [56, 56]]
TEXT = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1,
        "eos_token_id": None, "pad_token_id": PAD}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
         "patch_size": 7}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
FAMILIES = ["llava", "llava_siglip", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
            "qwen3_vl_moe", "paligemma", "internvl"]


def config_of(name):
    """(class of the model, its config)."""
    import transformers as t

    if name == "llava":
        return t.LlavaForConditionalGeneration, t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**TOWER), text_config=t.LlamaConfig(**TEXT), image_token_id=IMAGE)
    if name == "llava_siglip":
        return t.LlavaForConditionalGeneration, t.LlavaConfig(
            vision_config=t.SiglipVisionConfig(**TOWER, vision_use_head=False), text_config=t.LlamaConfig(**TEXT),
            image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full")
    if name == "llava_next":
        return t.LlavaNextForConditionalGeneration, t.LlavaNextConfig(
            vision_config=t.CLIPVisionConfig(**TOWER), text_config=t.LlamaConfig(**TEXT), image_token_id=IMAGE,
            image_grid_pinpoints=PINPOINTS)
    if name == "llava_onevision":
        return t.LlavaOnevisionForConditionalGeneration, t.LlavaOnevisionConfig(
            vision_config=t.SiglipVisionConfig(**TOWER, vision_use_head=False), text_config=t.Qwen2Config(**TEXT),
            image_token_id=IMAGE, video_token_id=VIDEO, image_grid_pinpoints=PINPOINTS, vision_feature_layer=-1,
            vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_2")
    if name == "paligemma":
        text = t.GemmaConfig(**TEXT, head_dim=16)
        return t.PaliGemmaForConditionalGeneration, t.PaliGemmaConfig(
            vision_config=t.SiglipVisionConfig(**TOWER, vision_use_head=False, projection_dim=64), text_config=text,
            image_token_id=IMAGE, projection_dim=64)
    if name == "internvl":
        vision = t.InternVLVisionConfig(**{**TOWER, "image_size": [28, 28], "patch_size": [7, 7]})
        return t.InternVLForConditionalGeneration, t.InternVLConfig(
            vision_config=vision, text_config=t.Qwen2Config(**TEXT), image_token_id=IMAGE)
    rope = {**TEXT, "head_dim": 16, "rope_parameters": MROPE}
    packed = {"patch_size": 7, "temporal_patch_size": 2, "spatial_merge_size": 2, "num_heads": 4}
    tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
              "vision_end_token_id": END}
    if name == "qwen2_vl":
        return t.Qwen2VLForConditionalGeneration, t.Qwen2VLConfig(
            text_config=rope, vision_config={**packed, "depth": 3, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
            **tokens)
    wide = {**packed, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    if name == "qwen2_5_vl":
        return t.Qwen2_5_VLForConditionalGeneration, t.Qwen2_5_VLConfig(
            text_config=rope, vision_config={**wide, "depth": 3, "window_size": 28, "fullatt_block_indexes": [1]},
            **tokens)
    deep = {**wide, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    if name == "qwen3_vl_moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        return t.Qwen3VLMoeForConditionalGeneration, t.Qwen3VLMoeConfig(
            text_config={**rope, **experts}, vision_config=deep, **tokens)
    return t.Qwen3VLForConditionalGeneration, t.Qwen3VLConfig(text_config=rope, vision_config=deep, **tokens)


def make_model(name, attention="sdpa", seed=0):
    """Weights large enough that argmax is not degenerate."""
    torch.manual_seed(seed)
    cls, config = config_of(name)
    config._attn_implementation = attention
    model = cls(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def make_inputs(name, model, words=(5, 3), padding="left", images=(1, 1), seed=1, labels=False):
    """Row b: bos, `images[b]` images with their marks, `words[b]` words. Sizes of images differ where they may."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(images)
    inputs, lengths = pixels_of(name, model, count, generator)
    rows, image = [], 0
    for number, text in zip(images, words, strict=True):
        row = [1]
        for _ in range(number):
            row += [START, *[IMAGE] * lengths[image], END]
            image += 1
        rows.append(row + torch.randint(2, 90, (text,), generator=generator).tolist())
    longest = max(map(len, rows))
    blanks = [[PAD] * (longest - len(row)) for row in rows]
    ids = [blank + row if padding == "left" else row + blank for row, blank in zip(rows, blanks)]
    exist = [[0] * len(blank) + [1] * len(row) if padding == "left" else [1] * len(row) + [0] * len(blank)
             for row, blank in zip(rows, blanks)]
    inputs |= {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(exist)}
    is_image = inputs["input_ids"] == IMAGE
    if name.startswith("qwen"):
        inputs["mm_token_type_ids"] = is_image.int()
    if name == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if labels:
        inputs["labels"] = inputs["input_ids"].masked_fill(is_image | (inputs["attention_mask"] == 0), -100)
        if name == "paligemma":  # the answer is the causal suffix: the last words
            inputs["token_type_ids"][:, -2:] = 1
    return inputs, lengths


def pixels_of(name, model, count, generator):
    """(the encoder's arguments for `count` images, tokens of each in the prompt)."""
    if name.startswith("qwen"):
        grid = torch.tensor([[1, 8, 6], [1, 4, 8], [1, 8, 8]])[torch.arange(count) % 3]
        pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 7 * 7, generator=generator)
        return {"pixel_values": pixels, "image_grid_thw": grid}, (grid.prod(1) // 4).tolist()
    if name in ("llava_next", "llava_onevision"):
        sizes = torch.tensor([[40, 56], [28, 28], [56, 30]])[torch.arange(count) % 3]
        inputs = {"pixel_values": torch.randn(count, 5, 3, 28, 28, generator=generator), "image_sizes": sizes}
        with torch.no_grad():
            return inputs, [len(x) for x in model.model.get_image_features(**inputs).pooler_output]
    if name == "internvl":  # the first image in two crops
        crops = [2, *[1] * (count - 1)]
        return {"pixel_values": torch.randn(sum(crops), 3, 28, 28, generator=generator)}, [4 * n for n in crops]
    return {"pixel_values": torch.randn(count, 3, 28, 28, generator=generator)}, [16] * count


def make_video(name, model, seed=1):
    """One row with an image and a video of two frames: (inputs, tokens of the image, tokens of the video)."""
    generator = torch.Generator().manual_seed(seed)
    inputs, (image,) = pixels_of(name, model, 1, generator)
    if name.startswith("qwen"):
        grid = torch.tensor([[2, 4, 6]])
        inputs |= {"pixel_values_videos": torch.randn(48, 3 * 2 * 7 * 7, generator=generator), "video_grid_thw": grid}
        video = 12
    else:
        inputs["pixel_values_videos"] = torch.randn(1, 2, 3, 28, 28, generator=generator)
        video = 2 * 4 + 1
    # Qwen3-VL writes the time before every frame.
    frames = [START, *[VIDEO] * video, END]
    if name.startswith("qwen3_vl"):
        frames = [9, START, *[VIDEO] * (video // 2), END] * 2
    ids = torch.tensor([[1, START, *[IMAGE] * image, END, *frames, 5, 6, 7]])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return inputs, [image], [video]
