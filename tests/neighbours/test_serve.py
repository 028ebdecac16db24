"""examples/serve.py on loopback: answers are the pruned model's own, and wrong requests are told what is wrong."""

import base64
import http.client
import io
import json
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

import budgetprune
from budgetprune.tasks import build
from budgetprune.training import load_base
from budgetprune.training.base_model import CHECKPOINTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAMPLES = build("digits").samples("test", 12, 5)


@pytest.fixture(scope="module")
def served():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from serve import Service, make_server
    finally:
        sys.path.remove(str(EXAMPLES))
    model, processor = load_base(CHECKPOINTS / "digits-llava")
    service = Service(budgetprune.prune(model, "prumerge_plus", keep=24), processor, "digits-llava", 24)
    server = make_server(service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield service, server.server_address
    server.shutdown()
    server.server_close()


def ask(served, body, method="POST", path="/v1/chat/completions", headers=None):
    """(status, content type, text) of one request."""
    connection = http.client.HTTPConnection(*served[1], timeout=60)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def url(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def question(sample, **options):
    parts = [{"type": "image_url", "image_url": {"url": url(sample.image)}}, {"type": "text", "text": sample.question}]
    return {"model": "digits-llava", "messages": [{"role": "user", "content": parts}], **options}


@torch.no_grad()
def directly(service, sample, keep):
    """What the model says without a server."""
    service.pruning.set_keep(keep)
    inputs = service.processor(images=sample.image, text="<image> " + sample.question, return_tensors="pt")
    tokens = service.pruning.model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
    return service.processor.tokenizer.decode(tokens, skip_special_tokens=True), inputs["input_ids"].shape[1]


@pytest.mark.parametrize("keep", [None, 2, 0.5])
def test_answers_are_the_models_own_at_the_budget_of_the_request(served, keep):
    right, kept = 0, {None: 24, 2: 2, 0.5: 32}[keep]
    for sample in SAMPLES:
        status, kind, text = ask(served, question(sample, keep=keep))
        answer = json.loads(text)
        assert (status, kind) == (200, "application/json")
        expected, prompt = directly(served[0], sample, kept)
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": expected} and choice["finish_reason"] == "stop"
        assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 2, "total_tokens": prompt + 2,
                                   "image_tokens_kept": [kept]}
        right += expected == sample.answer
    assert right >= 9 if kept > 2 else right <= 9


def test_a_stream_brings_the_same_text_in_events(served):
    sample = SAMPLES[0]
    status, kind, text = ask(served, question(sample, stream=True, stream_options={"include_usage": True}))
    assert (status, kind) == (200, "text/event-stream")
    *events, end, rest = text.split("\n\n")
    assert end == "data: [DONE]" and rest == ""
    *chunks, usage = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant" and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "".join(delta.get("content", "") for delta in deltas) == directly(served[0], sample, 24)[0]
    assert usage["choices"] == [] and usage["usage"]["image_tokens_kept"] == [24]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_conversation_goes_on_about_its_image(served):
    first, second = SAMPLES[0], SAMPLES[1]
    body = question(first)
    body["messages"] += [{"role": "assistant", "content": first.answer}, {"role": "user", "content": second.question}]
    status, _, text = ask(served, body)
    assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == second.answer


def test_max_tokens_and_sampling_are_obeyed(served):
    status, _, text = ask(served, question(SAMPLES[0], max_tokens=1, temperature=0))
    assert status == 200 and json.loads(text)["choices"][0]["finish_reason"] == "length"
    assert json.loads(text)["usage"]["completion_tokens"] == 1
    hot = [json.loads(ask(served, question(SAMPLES[0], temperature=2, seed=seed, keep=1, max_tokens=1))[2])
           ["choices"][0]["message"]["content"] for seed in (1, 1, 2, 3, 4, 5, 6)]
    assert hot[0] == hot[1] and len(set(hot)) > 1


def test_requests_at_once_get_each_its_own_budget(served):
    answers = {}

    def one(keep):
        answers[keep] = json.loads(ask(served, question(SAMPLES[0], keep=keep))[2])["usage"]["image_tokens_kept"]

    threads = [threading.Thread(target=one, args=(keep,)) for keep in range(3, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {keep: [keep] for keep in range(3, 11)}


def without_image(**options):
    return {"messages": [{"role": "user", "content": "which digit is red"}], **options}


def content(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(link):
    return content({"type": "image_url", "image_url": {"url": link}})


@pytest.mark.parametrize("body, param, match", [
    (b"{", None, "must be JSON"),
    (b"\xff", None, "must be JSON"),
    (b"[" * 100_000, None, "must be JSON"),
    ([1], None, "must be a JSON object, got list"),
    ({}, "messages", "at least one message"),
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": ["hi"]}, "messages[0]", "an object whose role is one of system, user, assistant"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "role is one of"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "a string or a list of parts, got NoneType"),
    (content({"type": "input_audio"}), "messages[0].content[0]", "of type text, with text, or of type image_url"),
    (content({"type": "text", "text": "<image> hi"}), "messages[0].content[0]", "must not contain '<image>'"),
    (content({"type": "text", "text": "\ud800"}), "messages[0].content[0]", "surrogate"),
    (image("http://127.0.0.1/x.png"), "messages[0].content[0]", "must be a data:image/"),
    (image("data:image/png;base64,????"), "messages[0].content[0]", "must be an image in base64"),
    (image("data:image/png;base64,aGVsbG8="), "messages[0].content[0]", "must be an image in base64"),
    (without_image(keep="many"), "keep", 'a number from 0 to 1048576, got "many"'),
    (without_image(keep=1.5), "keep", "a number from 0 to 1, got 1.5"),
    (without_image(keep=[2]), "keep", "got \\[2\\]"),
    (without_image(max_tokens=0), "max_tokens", "an integer from 1"),
    (without_image(max_tokens=2.5), "max_tokens", "an integer from 1"),
    (without_image(max_tokens=1000), "messages", "context of 512 tokens, got 5 and 1000"),
    (without_image(temperature=True), "temperature", "a number from 0 to 2, got true"),
    (without_image(temperature=float("nan")), "temperature", "a number from 0 to 2, got NaN"),
    (without_image(n=2), "n", "an integer from 1 to 1, got 2"),
    (without_image(stream=1), "stream", "true or false, got 1"),
    (without_image(stop="."), "stop", "stop is not supported"),
], ids=lambda value: None)
def test_a_wrong_request_is_told_what_is_wrong(served, body, param, match):
    import re

    status, kind, text = ask(served, body)
    assert (status, kind) == (400, "application/json"), text
    error = json.loads(text)["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param
    assert re.search(match, error["message"]), error["message"]


def test_other_places_and_models_and_sizes_have_their_own_status(served):
    assert ask(served, None, "GET", "/health")[::2] == (200, '{"status": "ok"}')
    assert json.loads(ask(served, None, "GET", "/v1/models")[2])["data"][0]["id"] == "digits-llava"
    assert ask(served, None, "GET", "/v1/nothing")[0] == 404
    assert ask(served, {}, path="/v1/completions")[0] == 404
    assert ask(served, without_image(model="gpt"))[0] == 404
    assert ask(served, None, headers={"Content-Length": str(1 << 40)})[0] == 413
    assert ask(served, None, headers={"Transfer-Encoding": "chunked"})[0] == 411


def test_a_failure_inside_is_a_500_and_the_server_lives_on(served, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("secret")

    monkeypatch.setattr(served[0].pruning.model, "generate", broken)
    status, _, text = ask(served, question(SAMPLES[0]))
    assert status == 500 and json.loads(text)["error"]["type"] == "server_error" and "secret" not in text
    assert "secret" in caplog.text
    monkeypatch.undo()
    assert ask(served, question(SAMPLES[0]))[0] == 200
