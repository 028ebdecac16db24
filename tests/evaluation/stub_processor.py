"""A processor for the small random models of tests/families.py, whose real ones need files from the network."""

import numpy as np
import torch
from families import IMAGE, PAD


class StubProcessor:
    """Pixels from the image itself, word ids from the words, answers "yes" and "no" by the ids that come out."""

    def __init__(self, name, model):
        self.name, self.model, self.tokenizer, self.images = name, model, self, []

    def apply_chat_template(self, messages, add_generation_prompt):
        picture, text = messages[0]["content"]
        assert picture == {"type": "image"} and add_generation_prompt
        return text["text"]

    def batch_decode(self, rows, skip_special_tokens):
        return [("Yes", "No", "dakota")[int(row.sum()) % 3] for row in rows]

    def __call__(self, text, images, return_tensors, padding):
        self.images += images
        inputs, lengths = getattr(self, f"_{self.name}")(images)
        rows = [[1] + [IMAGE] * length + [2 + sum(map(ord, word)) % 88 for word in words.split()]
                for length, words in zip(lengths, text, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        inputs |= {"input_ids": ids, "attention_mask": (ids != PAD).long()}
        if self.name == "qwen2_5_vl":
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        return inputs

    @staticmethod
    def _pixels(image, height, width):
        array = np.asarray(image.resize((width, height)) if hasattr(image, "resize") else image)
        return torch.from_numpy(array.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)

    def _llava(self, images):
        return {"pixel_values": torch.stack([self._pixels(image, 28, 28) for image in images])}, [16] * len(images)

    def _qwen2_5_vl(self, images):
        """Patches of 7 pixels, four to a token."""
        grid = torch.tensor([[1, 2 * (image.height // 14), 2 * (image.width // 14)] for image in images])
        pixels = [self._pixels(image, 7 * h, 7 * w).unfold(1, 7, 7).unfold(2, 7, 7).flatten(1, 2).transpose(0, 1)
                  for image, (_, h, w) in zip(images, grid.tolist())]
        packed = torch.cat([row.flatten(1).repeat(1, 2) for row in pixels])
        return {"pixel_values": packed, "image_grid_thw": grid}, (grid.prod(1) // 4).tolist()

    def _llava_next(self, images):
        sizes = torch.tensor([[image.height, image.width] for image in images])
        pixels = torch.stack([torch.stack([self._pixels(image, 28, 28)] * 5) for image in images])
        inputs = {"pixel_values": pixels, "image_sizes": sizes}
        with torch.no_grad():
            return inputs, [len(x) for x in self.model.model.get_image_features(**inputs).pooler_output]
