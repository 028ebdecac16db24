"""The sizes of a vision-language model that its cost depends on, as plain integers."""

from dataclasses import dataclass, field, fields

from .tiling import Tiling


def _check_counts(shape):
    for one in fields(shape):
        value, least = getattr(shape, one.name), 0 if one.metadata.get("none") else 1
        if value is None and one.type == int | None:
            continue
        if one.type in (int, int | None) and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            wanted = "a positive int" if least else "an int of at least 0"
            raise ValueError(f"{type(shape).__name__}.{one.name} must be {wanted}, got {value!r}")


def _maybe(default=0):
    """A count that may be 0."""
    return field(default=default, metadata={"none": True})


@dataclass(frozen=True)
class TowerShape:
    """A vision transformer: a patch convolution, and blocks that are all of one size.

    image_size: pixels on a side of the square crops that it sees; None: images of any size, packed (Qwen).
    class_token: one row more than patches. gated: MLP of three matrices, not of two.
    frames: pictures that one patch spans (Qwen: 2, a still picture is doubled).
    window: patches on a side of the windows that layers see, but for `whole_layers`; None: all see the whole image.
    pooling_head: SigLIP's attention pooling runs at the end, though a VLM does not read it.
    vectors: parameters that are in no matrix product: biases, norms, position vectors.
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    image_size: int | None
    patch_size: int
    channels: int = 3
    class_token: bool = True
    gated: bool = False
    frames: int = 1
    window: int | None = None
    whole_layers: tuple[int, ...] = ()
    pooling_head: bool = False
    vectors: int = _maybe()

    def __post_init__(self):
        _check_counts(self)

    @property
    def side(self):
        """Patches on a side of one crop; ValueError where images have any size."""
        if self.image_size is None:
            raise ValueError("model must see images in crops of one size, for this: its tower packs images of any size")
        return self.image_size // self.patch_size

    @property
    def patches(self):
        return self.side**2

    @property
    def pixels(self):
        """Values that one patch is made of."""
        return self.channels * self.frames * self.patch_size**2

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of every matrix of one block."""
        width = self.hidden
        return ((width, width),) * 4 + ((width, self.mlp),) * (1 + self.gated) + ((self.mlp, width),)


@dataclass(frozen=True)
class ProjectorShape:
    """What brings the tower's patches to the decoder's width.

    matrices: (inputs, outputs) of each matrix that every image token goes through.
    merge: patches on a side of the squares that become one token (pixel shuffle, patch merger, pooling).
    selects_before: budgetprune chooses among what the projector gets, so that it works on the kept tokens only.
    vectors: parameters in no product: biases, norms, LLaVA-NeXT's row end.
    """

    matrices: tuple[tuple[int, int], ...]
    merge: int = 1
    selects_before: bool = False
    vectors: int = _maybe()

    def __post_init__(self):
        _check_counts(self)


@dataclass(frozen=True)
class DecoderShape:
    """A Llama-type decoder: attention with grouped queries, then an MLP of three matrices, or of two, or of experts.

    mlp: width of the dense MLP. gated: three matrices, not two.
    experts, experts_per_token, expert_mlp: of a mixture of experts; experts 0: there is none. shared_mlp: width of an
        expert that every token goes through. dense_layers: layers that have the dense MLP all the same.
    windows: keys that each layer's queries may see at most, None for all; () where every layer sees all.
    prefix_lm: the prompt's tokens see each other in both directions, so causal attention spares nothing.
    norms: of one layer, over the hidden width. head_norms: queries and keys have one over head_dim as well.
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_head: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    gated: bool = True
    experts: int = _maybe()
    experts_per_token: int = _maybe()
    expert_mlp: int = _maybe()
    shared_mlp: int = _maybe()
    dense_layers: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    prefix_lm: bool = False
    norms: int = 2
    head_norms: bool = False

    def __post_init__(self):
        _check_counts(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"windows must have one entry per layer, {self.layers}, got {len(self.windows)}")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(f"experts_per_token must be in [1, {self.experts}], the experts there are, got "
                             f"{self.experts_per_token}")
        if self.experts and not self.expert_mlp:
            raise ValueError("expert_mlp must be at least 1 where there are experts, got 0")

    def sparse(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
        return self.experts > 0 and layer not in self.dense_layers

    @classmethod
    def from_config(cls, text, *, tied_head: bool | None = None):
        """The shape of a Hugging Face text config; attributes are read, nothing is imported."""
        from .families.decoders import decoder_of

        return decoder_of(text, tied_head=tied_head)


@dataclass(frozen=True)
class VlmShape:
    """Tower, projector and decoder.

    projector: LLaVA's two layers where None is given. keep_class_token: the class token is projected too.
    tiling: how many crops and tokens a picture of some size becomes; None: one crop, or a packed picture.
    model_type: of the config that it was read from. notes: what had to be assumed, in words.
    The whole tower runs whatever layer is read: `vision_feature_layer=-2` does not spare the last block.
    """

    tower: TowerShape
    decoder: DecoderShape
    projector: ProjectorShape | None = None
    keep_class_token: bool = False
    tiling: Tiling | None = None
    model_type: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.projector is None:
            width, out = self.tower.hidden, self.decoder.hidden
            object.__setattr__(self, "projector", ProjectorShape(((width, out), (out, out)), selects_before=True))

    @property
    def packed(self):
        """Whether images keep their size, so that the tower's work depends on it."""
        return self.tower.image_size is None

    @property
    def tokens_per_crop(self):
        """Image tokens that one tower run gives to the decoder; ValueError where images have any size."""
        return (self.tower.side // self.projector.merge) ** 2 + self.keep_class_token

    @classmethod
    def from_config(cls, config):
        """The shape of a Hugging Face config, object or JSON object; nothing is imported. See families.shape_of."""
        from .families import shape_of

        return shape_of(config)


def known(name):
    """The shape called `name`; ValueError lists the names there are."""
    from .families import KNOWN

    if name not in KNOWN:
        raise ValueError(f"model must be one of {', '.join(KNOWN)}, got {name!r}")
    return KNOWN[name]
