"""What training a pruner costs, by formula: bytes on each device and time of a step. Estimates, not measurements.

Bytes: frozen weights in their dtype; what is trained in float32 with its gradient and Adam's two moments; the tensors
that autograd keeps, counted one by one for a Llama layer whose matrices are frozen, so that their inputs are not kept;
logits in their dtype, and in float32 with their gradient for the loss. Not counted: fragmentation, buffers of
collectives, kernels' workspaces; OVERHEAD stands for CUDA's context and NCCL.

Operations, in passes through the forward's: 1 where no gradient comes by (tower, frozen projector), 2 through frozen
matrices (forward and the gradient of their input), 3 where both factors of a product have gradients (attention, LoRA,
weights that are trained); checkpointing adds 1 to every decoder layer.
"""

from dataclasses import dataclass

from .flops import _check_choice, _check_count, prefill_flops
from .hardware import Device, device
from .memory import parameters
from .shapes import DecoderShape, VlmShape

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp")
ASSUMED_MFU = 0.35  # share of the peak that a step reaches; published runs of dense models have 0.3 to 0.5
OVERHEAD = 2 * 10**9
STATE = {"weights": 4, "gradients": 4, "optimizer": 8}  # bytes of one trained value


@dataclass(frozen=True)
class TrainingCost:
    """Of one device, in bytes, and of one step of all devices.

    weights: frozen and trained. gathered: weights of other devices that are here for a moment (zero3, fsdp).
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


def activation_bytes(shape: VlmShape, samples: int, length: int, *, checkpointing: bool = True,
                     bytes_per_value: int = 2) -> int:
    """Of `samples` rows of `length` tokens. With checkpointing each layer's input, and all of one layer."""
    decoder = shape.decoder
    layer = kept_bytes(decoder, samples * length, bytes_per_value=bytes_per_value)
    if not checkpointing:
        return decoder.layers * layer
    return decoder.layers * samples * length * decoder.hidden * bytes_per_value + layer


def training_flops(shape: VlmShape, samples: int, image_tokens: int, text_tokens: int, *, crops: int | None = None,
                   lora_rank: int = 0, projector: bool = False, checkpointing: bool = True) -> int:
    """2 x multiply-adds of one step with so many samples: every image token stays in the sequence, behind its gate."""
    decoder, length = shape.decoder, image_tokens + text_tokens
    forward = prefill_flops(shape, image_tokens, image_tokens, text_tokens, logits="all", crops=crops)
    attention = min(forward.decoder, 2 * 2 * decoder.layers * length * length * decoder.heads * decoder.head_dim)
    again = int(checkpointing)
    of_decoder = (2 + again) * (forward.decoder - attention) + (3 + again) * attention
    of_lora = (3 + again) * 2 * length * lora_parameters(decoder, lora_rank)
    of_projector = forward.projector
    if projector:  # its first matrix's input is the tower's, which is frozen
        later = shape.projector.matrices[1:]
        of_projector += forward.projector + 2 * image_tokens * sum(inputs * outputs for inputs, outputs in later)
    return samples * (forward.vision + of_projector + of_decoder + of_lora + 2 * forward.head)


def training_cost(shape: VlmShape, on: Device | str, *, gpus: int = 1, strategy: str = "ddp", batch: int = 128,
                  micro_batch: int = 4, image_tokens: int | None = None, text_tokens: int = 200,
                  crops: int | None = None, lora_rank: int = 0, projector: bool = False, checkpointing: bool = True,
                  bytes_per_value: int = 2, mfu: float = ASSUMED_MFU) -> TrainingCost:
    """Estimates a run of `budgetprune train`.

    Args:
        on: the device, or its name in DEVICES. gpus: how many of them.
        strategy: "ddp": everything on each; "zero2": gradients and moments divided; "zero3", "fsdp": weights, too.
        batch: samples of a step over all devices. micro_batch: on one device at a time.
        image_tokens: of a sample; default: one crop. text_tokens: question and answer. crops: runs of the tower.
        lora_rank, projector: what is trained beside the pruner. bytes_per_value: of the frozen weights.
        mfu: share of the device's peak that a step reaches. Communication and reading are taken to be hidden.

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
    parts, decoder, length = parameters(shape), shape.decoder, image_tokens + text_tokens
    trained = pruner_parameters(shape) + lora_parameters(decoder, lora_rank)
    trained += parts["projector"] if projector else 0
    frozen = sum(parts.values()) - (parts["projector"] if projector else 0)
    divided = {"ddp": (), "zero2": ("gradients", "optimizer")}.get(strategy, ("weights", "gradients", "optimizer"))

    def share(name, count):
        return -(-count // gpus) if name in divided else count

    gathered = 0
    if "weights" in divided and gpus > 1:  # two layers, for the next is fetched while one is computed, or the head
        layer = (parts["decoder"] - (1 if decoder.tied_head else 2) * decoder.vocab * decoder.hidden) // decoder.layers
        gathered = bytes_per_value * max(2 * layer, decoder.vocab * decoder.hidden)
    flops = training_flops(shape, batch, image_tokens, text_tokens, crops=crops, lora_rank=lora_rank,
                           projector=projector, checkpointing=checkpointing)
    return TrainingCost(
        weights=share("weights", frozen * bytes_per_value + trained * STATE["weights"]),
        gradients=share("gradients", trained * STATE["gradients"]),
        optimizer=share("optimizer", trained * STATE["optimizer"]),
        activations=activation_bytes(shape, micro_batch, length, checkpointing=checkpointing,
                                     bytes_per_value=bytes_per_value),
        logits=micro_batch * length * decoder.vocab * (bytes_per_value + 8), gathered=gathered,
        step_flops=flops, step_seconds=flops / (gpus * on.flops_per_s * mfu))
