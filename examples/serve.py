"""An OpenAI-compatible chat server in front of a pruned model.

    python examples/serve.py                                    # the small digits LLaVA that comes with the package
    python examples/serve.py --model llava-hf/llava-1.5-7b-hf --method prumerge_plus --keep 144

POST /v1/chat/completions (also with "stream": true), GET /v1/models, GET /health. Images come as data: URLs; the server
fetches nothing. A request may name its own budget: "keep": 64, a count, or 0.25, a fraction.

It is the standard library's server: one generation at a time, no batching, no authentication, for a desk and for tests.
`transformers serve` loads its models itself, by name, and has no place to hand in a pruned one.
"""

import argparse
import json
import logging
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from chat_request import Request, RequestError, parse
from transformers import TextStreamer

import budgetprune

MAX_BODY, MAX_NEW_TOKENS = 32 << 20, 512
log = logging.getLogger("budgetprune.serve")


class Streamer(TextStreamer):
    """Hands text on as it is generated."""

    def __init__(self, tokenizer, tell):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tell = tell

    def on_finalized_text(self, text, stream_end=False):
        if text:
            self.tell(text)


class Service:
    """A pruned model that answers requests, one at a time."""

    def __init__(self, pruning: budgetprune.Pruning, processor, name: str, keep=None):
        self.pruning, self.processor, self.name, self.keep = pruning, processor, name, keep
        self.lock = threading.Lock()

    @torch.no_grad()
    def answer(self, request: Request, tell=None) -> tuple[str, str, dict]:
        """(text, finish_reason, usage); tell(text) gets the text piece by piece."""
        model, tokenizer = self.pruning.model, self.processor.tokenizer
        with self.lock:  # of the tokenizer too, which is no more for several threads than the budget is
            inputs = self.processor.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=True,
                                                        return_dict=True, return_tensors="pt").to(model.device)
            if request.images:
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            given = inputs["input_ids"].shape[1]
            options = {**request.sampling, "max_new_tokens": self.length(request, given)}
            self.pruning.set_keep(self.keep if request.keep is None else request.keep)
            if request.seed is not None:
                torch.manual_seed(request.seed)
            tokens = model.generate(**inputs, **options, streamer=tell and Streamer(tokenizer, tell))[0, given:]
            plan, text = self.pruning.plan, tokenizer.decode(tokens, skip_special_tokens=True)
        ends = model.generation_config.eos_token_id
        stopped = len(tokens) and tokens[-1].item() in (ends if isinstance(ends, list) else [ends])
        usage = {"prompt_tokens": given, "completion_tokens": len(tokens), "total_tokens": given + len(tokens)}
        if request.images:  # per image, or per request where the method prunes inside the decoder; null: all stayed
            usage["image_tokens_kept"] = plan and plan.counts()
        return text, "stop" if stopped else "length", usage

    def length(self, request: Request, given: int) -> int:
        """Tokens to generate behind a prompt of `given`."""
        config = self.pruning.model.config.get_text_config()
        room = config.max_position_embeddings - given
        default = self.pruning.model.generation_config.max_new_tokens or MAX_NEW_TOKENS
        wanted = request.max_tokens or max(1, min(default, room))
        if wanted > room:
            raise RequestError(f"messages and max_tokens must fit the model's context of {given + room} tokens, "
                               f"got {given} and {wanted}", "messages")
        return wanted


class Handler(BaseHTTPRequestHandler):
    """HTTP in, JSON or server-sent events out."""

    protocol_version, timeout = "HTTP/1.1", 60

    @property
    def service(self) -> Service:
        return self.server.service

    def do_GET(self):
        if self.path == "/health":
            return self.reply(200, {"status": "ok"})
        if self.path == "/v1/models":
            return self.reply(200, {"object": "list", "data": [{"id": self.service.name, "object": "model"}]})
        self.fail(RequestError(f"no {self.path} here", status=404))

    def do_POST(self):
        try:
            if self.path != "/v1/chat/completions":
                raise RequestError(f"no {self.path} here", status=404)
            request = parse(self.read(), self.service.name, getattr(self.service.processor, "image_token", None))
            (self.stream if request.stream else self.whole)(request)
        except RequestError as error:
            self.fail(error)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client left, which also ends its generation
        except Exception:
            log.exception("a request failed")
            self.fail(RequestError("the server failed; its log says why", status=500))

    def read(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RequestError("Content-Length must be given", status=411)
        if int(length) > MAX_BODY:
            raise RequestError(f"the request must have at most {MAX_BODY} bytes, got {length}", status=413)
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the request must be JSON: {error}") from error

    def head(self, kind: str) -> dict:
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
                "model": self.service.name}

    def whole(self, request: Request):
        text, reason, usage = self.service.answer(request)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        self.reply(200, {**self.head("chat.completion"), "choices": [choice], "usage": usage})

    def stream(self, request: Request):
        head, begun = self.head("chat.completion.chunk"), []

        def send(delta: dict, reason=None):
            if not begun:  # not before the first word: until then a wrong request still gets its status
                begun.append(True)
                self.close_connection = True  # the end of the connection ends the stream, as it has no length
                self.send_response(200)
                for name, value in (("Content-Type", "text/event-stream"), ("Connection", "close")):
                    self.send_header(name, value)
                self.end_headers()
                delta = {"role": "assistant", **delta}
            event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        def event(data):
            self.wfile.write(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())

        try:
            _, reason, usage = self.service.answer(request, lambda text: send({"content": text}))
            send({}, reason)
            if request.usage:
                event({**head, "choices": [], "usage": usage})
            event("[DONE]")
        except Exception as error:
            if not begun or isinstance(error, ConnectionError):
                raise
            log.exception("a stream failed")
            event(RequestError("the server failed; its log says why", status=500).body())

    def fail(self, error: RequestError):
        self.close_connection = True  # its body may not have been read
        self.reply(error.status, error.body())

    def reply(self, status: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *values):
        log.info(format, *values)


def make_server(service: Service, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server that is bound, not yet running; port 0: one that is free, see server_address."""
    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads, server.service = True, service
    return server


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name on the hub or a folder; default: the digits LLaVA of the package")
    parser.add_argument("--method", default="prumerge_plus", choices=budgetprune.methods())
    parser.add_argument("--keep", default="0.25", help="a count (144) or a fraction (0.25)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.model is None:
        from budgetprune.training import load_base

        (model, processor), name = load_base(), "digits-llava"
    else:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        where = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto").to(where)
        processor, name = AutoProcessor.from_pretrained(options.model), options.model
    keep = int(options.keep) if options.keep.isdecimal() else float(options.keep)
    pruning = budgetprune.prune(model.eval(), options.method, keep=keep)
    server = make_server(Service(pruning, processor, name, keep), options.host, options.port)
    log.info("%s with %s, keep %s, at http://%s:%s/v1", name, options.method, keep, *server.server_address[:2])
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
