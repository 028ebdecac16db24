"""What forward passes do, seen by hooks alone: tokens that each part reads, time of the selection and of a step."""

import time
from contextlib import contextmanager

import torch


@contextmanager
def hooked(*handles):
    """Removes the hooks again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Seen:
    """What one forward pass read. lengths: columns of each decoder layer; projected: rows of the projector."""

    def __init__(self):
        self.lengths, self.projected = [], 0

    def at_layer(self, module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        self.lengths.append(hidden.shape[1])

    def at_projector(self, module, args, output):
        self.projected += args[0].shape[:-1].numel()


@contextmanager
def tokens_seen(projector, decoder):
    """Seen of the one forward pass inside. Entered after prune(): its hooks must have run before these."""
    seen = Seen()
    handles = [layer.register_forward_pre_hook(seen.at_layer, with_kwargs=True) for layer in decoder.layers]
    handles.append(projector.register_forward_hook(seen.at_projector))
    with hooked(*handles):
        yield seen


class Stopwatch:
    """Adds up spans between begin() and end(): on a GPU between events of its stream, waiting for the host included."""

    def __init__(self, device):
        self.gpu, self.open, self.spans = device.type == "cuda", None, []

    def now(self):
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self, *_):
        if self.open is None:  # a span inside another one is part of it
            self.open = self.now()

    def end(self, *_):
        if self.open is not None:
            self.spans.append((self.open, self.now()))
            self.open = None

    def milliseconds(self):
        """What the spans sum up to; ValueError where there is none, for then the hooks are at the wrong places."""
        if not self.spans or self.open is not None:
            raise ValueError("no part of the pruning was seen between the hooks")
        if self.gpu:
            torch.cuda.synchronize()
            return sum(begin.elapsed_time(end) for begin, end in self.spans)
        return 1e3 * sum(end - begin for begin, end in self.spans)


@torch.no_grad()
def step_times(model, inputs, steps):
    """Milliseconds from one decoding step of generate() to the next, `steps` of them; the prefill is none."""
    starts = []

    def note(module, args, kwargs):
        if inputs["input_ids"].is_cuda:
            torch.cuda.synchronize()
        starts.append(time.perf_counter())

    with hooked(model.register_forward_pre_hook(note, with_kwargs=True)):
        model.generate(**inputs, do_sample=False, num_beams=1, min_new_tokens=steps + 2, max_new_tokens=steps + 2)
    return [1e3 * (after - before) for before, after in zip(starts[1:-1], starts[2:], strict=True)]


def around(module, watch, output=False):
    """Handles of hooks before and after all other hooks of a module, on its input or on its output."""
    register = module.register_forward_hook if output else module.register_forward_pre_hook
    return [register(watch.begin, prepend=True), register(watch.end)]


def timed_probe(watch):
    """A pre-hook of an attention module, which times the probe that a mid-LLM method sends along."""
    def hook(module, args, kwargs):
        probe = kwargs.get("budgetprune_probe")
        if probe is None:
            return None

        def timed(*given, **named):
            watch.begin()
            probe(*given, **named)
            watch.end()

        return args, {**kwargs, "budgetprune_probe": timed}

    return hook


@contextmanager
def selection_timed(model, projector, decoder, place):
    """A Stopwatch that runs while the pruning of `model` scores, ranks, gathers and remakes the prompt, and no longer.

    A method before the decoder acts between tower and projector, and between projector and decoder; one inside the
    decoder acts before and behind layers, and in the attention that it probes.
    """
    watch = Stopwatch(next(model.parameters()).device)
    if place == "llm":
        handles = around(model, watch) + around(decoder, watch)
        for layer in decoder.layers:  # where nothing hooks in, two events would only add their own time
            handles += around(layer, watch) if layer._forward_pre_hooks else []
            handles += around(layer, watch, output=True) if layer._forward_hooks else []
            handles.append(layer.self_attn.register_forward_pre_hook(timed_probe(watch), with_kwargs=True))
    else:
        handles = around(projector, watch)
        handles += [projector.register_forward_hook(watch.begin), model.register_forward_pre_hook(watch.end)]
    with hooked(*handles):
        yield watch
