"""The requests of a chat server: checked, with images decoded, or refused with the name of what is wrong."""

import base64
import binascii
import io
import json
from typing import NamedTuple

from PIL import Image

MAX_PIXELS = 50_000_000
ROLES = ("system", "user", "assistant")
KNOWN = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream",
         "stream_options", "n", "user", "keep"}


class RequestError(Exception):
    """What is wrong with a request, and the argument that it is wrong with."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status

    def body(self) -> dict:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}


class Request(NamedTuple):
    """A chat request that has been checked. messages: as chat templates take them, images decoded."""

    messages: list[dict]
    images: int
    max_tokens: int | None
    sampling: dict
    seed: int | None
    stream: bool
    usage: bool
    keep: int | float | None


def number(body: dict, name: str, low: float, high: float, *, whole: bool = False):
    """body[name] within [low, high], or None where it is not given."""
    value = body.get(name)
    kinds = int if whole else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high):
        kind = "an integer" if whole else "a number"
        raise RequestError(f"{name} must be {kind} from {low} to {high}, got {json.dumps(value)[:80]}", name)
    return value


def flag(body: dict, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {json.dumps(value)[:80]}", name)
    return bool(value)


def picture(part: dict, where: str) -> Image.Image:
    """The image of an image_url part, from a base64 data: URL."""
    link = part.get("image_url")
    url = link.get("url") if isinstance(link, dict) else None
    if not isinstance(url, str) or not url.startswith("data:image/") or ";base64," not in url[:64]:
        got = url[:40] if isinstance(url, str) else type(url).__name__
        raise RequestError(f"{where}.image_url.url must be a data:image/...;base64,... URL, got {got!r}", where)
    try:
        image = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1], validate=True)))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"at most {MAX_PIXELS} pixels are taken, got {image.width}x{image.height}")
        return image.convert("RGB")
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{where} must be an image in base64: {error}", where) from error


def message(given, where: str, placeholder: str | None) -> dict:
    """One message in the form of chat templates: all content in parts, images decoded."""
    if not isinstance(given, dict) or given.get("role") not in ROLES:
        raise RequestError(f"{where} must be an object whose role is one of {', '.join(ROLES)}", where)
    content, parts = given.get("content"), []
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise RequestError(f"{where}.content must be a string or a list of parts, got {type(content).__name__}", where)
    for index, part in enumerate(content):
        at = f"{where}.content[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            if placeholder and placeholder in part["text"]:
                raise RequestError(f"{at}.text must not contain {placeholder!r}, the model's mark for an image", at)
            if any("\ud800" <= character <= "\udfff" for character in part["text"]):
                raise RequestError(f"{at}.text must be Unicode, got half of a surrogate pair", at)
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image_url":
            parts.append({"type": "image", "image": picture(part, at)})
        else:
            raise RequestError(f"{at} must be a part of type text, with text, or of type image_url", at)
    return {"role": given["role"], "content": parts}


def parse(body, name: str, placeholder: str | None) -> Request:
    """Checks a request; RequestError names what is wrong."""
    if not isinstance(body, dict):
        raise RequestError(f"the request must be a JSON object, got {type(body).__name__}")
    for unknown in body.keys() - KNOWN:
        raise RequestError(f"{unknown} is not supported; known: {', '.join(sorted(KNOWN))}", unknown)
    if body.get("model") not in (None, name):
        raise RequestError(f"model must be {name!r}, got {json.dumps(body['model'])[:80]}", "model", 404)
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise RequestError("messages must be a list with at least one message", "messages")
    messages = [message(one, f"messages[{index}]", placeholder) for index, one in enumerate(given)]
    number(body, "n", 1, 1, whole=True)
    limits = [number(body, key, 1, 1 << 20, whole=True) for key in ("max_completion_tokens", "max_tokens")]
    temperature, top_p = number(body, "temperature", 0, 2), number(body, "top_p", 0, 1)
    sampling = {} if temperature is None else {"do_sample": temperature > 0}
    if temperature:
        sampling["temperature"] = float(temperature)
    if top_p and sampling.get("do_sample", True):
        sampling["top_p"] = float(top_p)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError("stream_options must be an object", "stream_options")
    keep = body.get("keep")
    if keep is not None:
        number(body, "keep", 0, 1 if isinstance(keep, float) else 1 << 20)
    images = sum(part["type"] == "image" for one in messages for part in one["content"])
    return Request(messages, images, limits[0] or limits[1], sampling, number(body, "seed", 0, 2**63 - 1, whole=True),
                   flag(body, "stream"), flag(options, "include_usage"), keep)
