"""What training a pruner costs, by formula: bytes on each device and time of a step. Estimates, not measurements.

Bytes: frozen weights in their dtype; what is trained in float32 with its gradient and Adam's two moments (with
DeepSpeed in two bytes, as its gradient, beside a float32 master and the moments); the tensors that autograd keeps,
counted one by one for a Llama layer whose matrices are frozen, so that their inputs are not kept, and for a block of
CLIP's or Qwen's tower where the gradient goes back through it; of LoRA and the projector what the gradients of their
weights need; logits in their dtype, and in float32 with their gradient for the loss. Not counted: fragmentation,
kernels' workspaces, buffers of collectives other than DeepSpeed's one bucket for gradients; OVERHEAD stands for CUDA's
context and NCCL.

Operations, in passes through the forward's: 1 where no gradient comes by (tower, projector, a question that is read for
the method), 2 through frozen matrices (forward and the gradient of their input), 3 where both factors of a product have
gradients (attention, LoRA, weights that are trained); checkpointing adds 1 to every layer of the decoder, and to those
of the tower where a gradient goes back through it. All of its layers are counted then, also one behind the layer that
is read.
"""

from dataclasses import dataclass

from .flops import _check_choice, _check_count, _look, prefill_flops
from .hardware import Device, device
from .memory import parameters
from .operators import tower_operators
from .shapes import DecoderShape, TowerShape, VlmShape

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp")
ASSUMED_MFU = 0.35  # share of the peak that a step reaches; published runs of dense models have 0.3 to 0.5
OVERHEAD = 2 * 10**9
# Bytes of one trained value. DeepSpeed keeps a float32 master with the moments, and computes in two bytes.
STATE = {"weights": 4, "gradients": 4, "optimizer": 8}
DEEPSPEED_STATE = {"weights": 2, "gradients": 2, "optimizer": 12}
# DeepSpeed's defaults: values of its bucket for gradients (reduce_bucket_size), and gathered weights that ZeRO-3 lets
# live (stage3_max_live_parameters), where docs/cluster.md's configuration names no others.
BUCKET, LIVE = 5 * 10**8, 10**9


@dataclass(frozen=True)
class Trainee:
    """What is trained beside LoRA and the model's projector, and what it asks of the model around it.
    training.trainee finds it out for a method by name.

    parameters: its own, a copy of the projector included. flops, activations: of its forward and backward for one
        sample, and bytes that autograd keeps of it; without such a copy. asked: FLOPs of the language model, which
        reads the question for it without gradient.
    tokens: image tokens that stand in the sequence in training; None: all of them do, behind gates or noise.
    in_tower: a budget token is in every row of the tower, which the gradient goes back through. through_features: the
        gradient goes back to what the projector gets. own_projector: it has a copy of the projector, which is trained.
    """

    parameters: int
    flops: int = 0
    activations: int = 0
    asked: int = 0
    tokens: int | None = None
    in_tower: bool = False
    through_features: bool = False
    own_projector: bool = False


@dataclass(frozen=True)
class TrainingCost:
    """Of one device, in bytes, and of one step of all devices.

    weights: frozen and trained. activations: what autograd keeps, of model and method. gathered: weights of other
    devices that are here for a moment (zero3, fsdp), and DeepSpeed's bucket.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int
    step_flops: int
    step_seconds: float

    @property
    def memory_bytes(self) -> int:
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.logits, self.gathered)
        return sum(parts) + OVERHEAD

    def hours(self, samples: int, batch: int) -> float:
        """Of an epoch over so many samples."""
        return -(-samples // batch) * self.step_seconds / 3600


def pruner_parameters(shape: VlmShape) -> int:
    """Of the controller of `adaptive` with its default options."""
    width, tokens = shape.decoder.hidden, 0  # behind the projector images differ in size
    if shape.projector.selects_before:
        width, tokens = shape.projector.matrices[0][0], shape.tower.side**2
    frequencies, hidden = 256, 256
    embedding = 2 * frequencies + frequencies * hidden + hidden + hidden * width + width
    return 2 * width + tokens + embedding + width * width + width + width + 1


def lora_parameters(decoder: DecoderShape, rank: int) -> int:
    """Of LoRA on the four matrices of attention in every layer."""
    inner, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    return decoder.layers * rank * (2 * (decoder.hidden + inner) + 2 * (decoder.hidden + kv))


def kept_bytes(decoder: DecoderShape, tokens: int, *, bytes_per_value: int = 2) -> int:
    """What autograd keeps of one decoder layer with frozen matrices, of `tokens` tokens.

    In the model's dtype: queries, keys, values and attention's output; the gate of the MLP before and behind its
    activation, and what it multiplies. In float32: both norms' inputs and 1 / rms, and attention's log-sum-exp.
    Of a mixture, the experts that a token goes through.
    """
    inner, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    mlp = decoder.experts_per_token * decoder.expert_mlp + decoder.shared_mlp if decoder.experts else decoder.mlp
    in_dtype = 2 * inner + 2 * kv + (3 if decoder.gated else 2) * mlp
    return tokens * (bytes_per_value * in_dtype + 4 * (2 * decoder.hidden + 2 + decoder.heads))


def lora_kept_bytes(decoder: DecoderShape, tokens: int, rank: int, *, bytes_per_value: int = 2) -> int:
    """What autograd keeps of LoRA in one layer beside: each matrix's input in float32, a copy for each where the model
    is in another dtype, and what comes out of the first factor."""
    inner = decoder.heads * decoder.head_dim
    if not rank:
        return 0
    return 4 * tokens * ((1 if bytes_per_value == 4 else 3) * decoder.hidden + inner + 4 * rank)


def tower_kept_bytes(tower: TowerShape, rows: int, *, bytes_per_value: int = 2) -> int:
    """What autograd keeps of one block of the tower with frozen matrices, of `rows` tokens, where a gradient goes back
    through it.

    In the model's dtype: both norms' inputs, mean and 1 / deviation (where the MLP is gated, RMS norms in float32),
    queries, keys, values and attention's output, what the MLP has before and in its activation (of quick GELU; GELU
    keeps the one before alone, and is counted too high). In float32: attention's log-sum-exp. Packed towers turn
    queries and keys, which keeps both once more, with cosines and sines.
    """
    width, wide = tower.hidden, bytes_per_value
    norms = 8 * width + 8 if tower.gated else wide * (2 * width + 4)
    turned = 0 if tower.image_size else wide * 2 * width + 8 * (width // tower.heads)
    inside = wide * (4 * width + (3 if tower.gated else 2) * tower.mlp) + 4 * tower.heads
    return rows * (norms + turned + inside)


def projector_kept_bytes(shape: VlmShape, tokens: int, *, trained: bool, through: bool,
                         bytes_per_value: int = 2) -> int:
    """What autograd keeps of the projector: of a trained one, in float32, every matrix's input and every activation's;
    of a frozen one, where a gradient goes back through it, the activations' inputs alone."""
    widths = [inputs for inputs, _ in shape.projector.matrices]
    if trained:
        return 4 * tokens * (sum(widths) + sum(widths[1:]))
    return bytes_per_value * tokens * sum(widths[1:]) if through else 0


def activation_bytes(shape: VlmShape, samples: int, length: int, *, checkpointing: bool = True,
                     bytes_per_value: int = 2, lora_rank: int = 0, tower_rows: int = 0) -> int:
    """Of `samples` rows of `length` tokens. With checkpointing each layer's input, and all of one layer.

    tower_rows: tokens of one sample in the tower, where a gradient goes back through that; else 0.
    """
    decoder, tower, wide, rows = shape.decoder, shape.tower, bytes_per_value, samples * tower_rows
    layer = kept_bytes(decoder, samples * length, bytes_per_value=wide)
    layer += lora_kept_bytes(decoder, samples * length, lora_rank, bytes_per_value=wide)
    block = tower_kept_bytes(tower, rows, bytes_per_value=wide)
    if not checkpointing:
        return decoder.layers * layer + tower.layers * block
    inputs = decoder.layers * samples * length * decoder.hidden + tower.layers * rows * tower.hidden
    return inputs * wide + max(layer, block)


def training_flops(shape: VlmShape, samples: int, image_tokens: int, text_tokens: int, *, crops: int | None = None,
                   lora_rank: int = 0, projector: bool = False, checkpointing: bool = True,
                   trainee: Trainee | None = None) -> int:
    """2 x multiply-adds of one step with so many samples. trainee: None: one whose own operations do not count, and
    with which every image token stays in the sequence."""
    trainee, again = trainee or Trainee(0), int(checkpointing)
    decoder, kept = shape.decoder, image_tokens if trainee.tokens is None else trainee.tokens
    length, early = kept + text_tokens, shape.projector.selects_before
    forward = prefill_flops(shape, image_tokens, kept, text_tokens, logits="all", crops=crops,
                            projected="kept" if early else "all")
    attention = min(forward.decoder, 2 * 2 * decoder.layers * length * length * decoder.heads * decoder.head_dim)
    of_decoder = (2 + again) * (forward.decoder - attention) + (3 + again) * attention
    of_lora = (3 + again) * 2 * length * lora_parameters(decoder, lora_rank)
    trained = projector or trainee.own_projector
    of_projector = _through_projector(shape, forward.projector, trained, trainee.through_features)
    of_vision = _through_tower(shape, image_tokens, crops, again) if trainee.in_tower else forward.vision
    return samples * (of_vision + of_projector + of_decoder + of_lora + 2 * forward.head + trainee.flops
                      + trainee.asked)


def _through_projector(shape, forward, trained, through):
    """Forward and backward; the gradient of the first matrix's input is needed only where something learns before."""
    sizes = [inputs * outputs for inputs, outputs in shape.projector.matrices]
    of_inputs = forward if through else forward * sum(sizes[1:]) // max(1, sum(sizes)) if trained else 0
    return forward + (forward if trained else 0) + of_inputs


def _through_tower(shape, image_tokens, crops, again):
    """Forward and backward of the tower with a budget token in each crop or frame."""
    runs, grids = _look(shape, image_tokens, crops, None)
    passes = {"attention": 3 + again, "linear": 2 + again}
    return sum(one.flops * passes.get(one.name, 1) for one in tower_operators(shape.tower, runs, grids, extra=1))


def training_cost(shape: VlmShape, on: Device | str, *, gpus: int = 1, strategy: str = "ddp", batch: int = 128,
                  micro_batch: int = 4, image_tokens: int | None = None, text_tokens: int = 200,
                  crops: int | None = None, lora_rank: int = 0, projector: bool = False, checkpointing: bool = True,
                  bytes_per_value: int = 2, mfu: float = ASSUMED_MFU,
                  trainee: Trainee | None = None) -> TrainingCost:
    """Estimates a run of `budgetprune train`.

    Args:
        on: the device, or its name in DEVICES. gpus: how many of them.
        strategy: "ddp": everything on each; "zero2": gradients and moments divided; "zero3", "fsdp": weights, too.
        batch: samples of a step over all devices. micro_batch: on one device at a time.
        image_tokens: of a sample; default: one crop. text_tokens: question and answer. crops: runs of the tower.
        lora_rank, projector: what is trained beside the pruner. bytes_per_value: of the frozen weights.
        mfu: share of the device's peak that a step reaches. Communication and reading are taken to be hidden.
        trainee: of the method, as training.trainee finds it; None: `adaptive` with its default options, whose own
            operations and activations, under 1 %, are left out.

    ValueError and TypeError name the argument.
    """
    on = device(on) if isinstance(on, str) else on
    image_tokens = shape.tokens_per_crop if image_tokens is None else image_tokens
    for name, value, least in (("gpus", gpus, 1), ("batch", batch, 1), ("micro_batch", micro_batch, 1),
                               ("image_tokens", image_tokens, 1), ("text_tokens", text_tokens, 1),
                               ("lora_rank", lora_rank, 0), ("bytes_per_value", bytes_per_value, 1)):
        _check_count(name, value, least)
    _check_choice("strategy", strategy, STRATEGIES)
    if batch % (gpus * micro_batch):
        raise ValueError(f"batch must be a multiple of gpus x micro_batch, {gpus} x {micro_batch}, got {batch}")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu must be in (0, 1], got {mfu}")
    trainee = trainee or Trainee(pruner_parameters(shape))
    if projector and trainee.own_projector:
        raise ValueError("projector must be False with a method that trains a copy of its own")
    parts, decoder, early = parameters(shape), shape.decoder, shape.projector.selects_before
    kept = image_tokens if trainee.tokens is None else trainee.tokens
    trained = trainee.parameters + lora_parameters(decoder, lora_rank) + (parts["projector"] if projector else 0)
    frozen = sum(parts.values()) - (parts["projector"] if projector else 0)
    divided = {"ddp": (), "zero2": ("gradients", "optimizer")}.get(strategy, ("weights", "gradients", "optimizer"))
    state = DEEPSPEED_STATE if strategy in ("zero2", "zero3") else STATE

    def share(name, count):
        return -(-count // gpus) if name in divided else count

    flops = training_flops(shape, batch, image_tokens, text_tokens, crops=crops, lora_rank=lora_rank,
                           projector=projector, checkpointing=checkpointing, trainee=trainee)
    wide = {"bytes_per_value": bytes_per_value}
    activations = activation_bytes(shape, micro_batch, kept + text_tokens, checkpointing=checkpointing,
                                   lora_rank=lora_rank, **wide,
                                   tower_rows=_tower_rows(shape, image_tokens, crops) if trainee.in_tower else 0)
    activations += micro_batch * trainee.activations + projector_kept_bytes(
        shape, micro_batch * (kept if early else image_tokens), trained=projector or trainee.own_projector,
        through=trainee.through_features, **wide)
    return TrainingCost(
        weights=share("weights", frozen * bytes_per_value + trained * state["weights"]),
        gradients=share("gradients", trained * state["gradients"]),
        optimizer=share("optimizer", trained * state["optimizer"]), activations=activations,
        logits=micro_batch * (kept + text_tokens) * decoder.vocab * (bytes_per_value + 8),
        gathered=_gathered(parts, decoder, strategy, gpus, bytes_per_value),
        step_flops=flops, step_seconds=flops / (gpus * on.flops_per_s * mfu))


def _tower_rows(shape, image_tokens, crops):
    """Tokens of one sample in the tower, a budget token in each crop included, or one in all of a packed picture."""
    if shape.packed:
        return image_tokens * shape.projector.merge**2 + 1
    return _look(shape, image_tokens, crops, None)[0] * (shape.tower.patches + shape.tower.class_token + 1)


def _gathered(parts, decoder, strategy, gpus, bytes_per_value):
    if strategy == "ddp" or (strategy == "fsdp" and gpus == 1):
        return 0
    bucket = BUCKET * bytes_per_value if strategy != "fsdp" else 0
    if strategy == "zero2" or gpus == 1:
        return bucket
    if strategy == "zero3":
        return bucket + bytes_per_value * min(LIVE, sum(parts.values()))
    # Two layers, for the next is fetched while one is computed, or the head.
    layer = (parts["decoder"] - (1 if decoder.tied_head else 2) * decoder.vocab * decoder.hidden) // decoder.layers
    return bytes_per_value * max(2 * layer, decoder.vocab * decoder.hidden)
