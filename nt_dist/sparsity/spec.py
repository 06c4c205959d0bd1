"""What a weight is, before anybody stores it, and how it is cut into topology shards (docs/design.md §3).

A weight is cut into equal shards along one axis. Each shard has its own slot count, streams, drop and regrow, so a rank
that owns whole shards needs no other rank for an update, and any layout trains the same model. Without torch: a config
is checked against its weights' names before anything slow is loaded.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WeightSpec:
    """One weight of the model, the same on every rank."""

    name: str  # with a trail and a shard it keys every random stream
    shape: tuple[int, ...]  # one trail's whole dense shape, padding included
    cut_axis: int = 0  # axis of ``shape`` that is cut into shards
    trails: int = 1  # copies: 1 in the trunk, one per trail after the fork
    shards: int = 1  # topology shards; must divide ``shape[cut_axis]``
    valid: int | None = None  # entries of the cut axis that are real; the rest is padding and never active
    density: float = 1.0  # share of the real entries that is active, in (0, 1]
    init: float | None = 0.02  # standard deviation of the normal distribution of initial values; None: all are 1
    role: str = "linear"
    """"linear" (x · Wᵀ), "convolution", "lookup" (rows by number), "scale" or "bias" (element-wise factor or summand),
    or "statistic": no weight but state that is saved and compared (see statistic.py); its ``init`` is None or 0."""
    in_trail: bool = False  # whether it belongs to the trails (and not to the trunk)
    layer: str = ""  # name of the layer that has it, as in model/trails.py's layer_names
    uses: int = 1
    """Products with it per position of a sample's logits: 1 for a linear weight of text, the pixels of the result for a
    convolution, 0 for what multiplies nothing."""
    group: int = 0  # outputs (entries of axis 0) that share their active inputs (see groups.py); 0: each has its own
    block: int = 1  # adjacent inputs of a group that are active together, at most (see :meth:`width`)

    def __post_init__(self):
        assert self.shape[self.cut_axis] % self.shards == 0, f"{self.name}: {self.shards} shards of {self.shape}"
        assert 0.0 < self.density <= 1.0, f"{self.name}: density {self.density}"
        if self.valid is None:
            object.__setattr__(self, "valid", self.shape[self.cut_axis])

    @property
    def is_vector(self) -> bool:
        """Whether it works element by element: never sparse, in no density, without weight decay."""
        return self.role in ("scale", "bias")

    @property
    def is_sparse(self) -> bool:
        """Whether some entries are inactive."""
        return self.density < 1.0

    @property
    def shard_length(self) -> int:
        """Entries of the cut axis in one shard."""
        return self.shape[self.cut_axis] // self.shards

    @property
    def shard_elements(self) -> int:
        """Entries of one shard, padding included."""
        return math.prod(self.shape) // self.shards

    @property
    def slice_elements(self) -> int:
        """Entries of the weight for each entry of the cut axis."""
        return math.prod(self.shape_of(1))

    def real_length(self, shard: int) -> int:
        """Real entries of the cut axis in ``shard``."""
        return min(max(self.valid - shard * self.shard_length, 0), self.shard_length)

    @property
    def columns(self) -> int:
        """Entries of a shard for each of its outputs, padding included."""
        return self.shard_elements // (self.shard_length if self.cut_axis == 0 else self.shape[0])

    def real_rows(self, shard: int) -> int:
        """Outputs of ``shard`` that are no padding."""
        return self.real_length(shard) if self.cut_axis == 0 else self.shape[0]

    def real_columns(self, shard: int) -> int:
        """Entries of ``shard`` that are no padding, for each of its outputs."""
        return self.columns if self.cut_axis == 0 else self.columns // self.shard_length * self.real_length(shard)

    def inputs(self, shard: int) -> int:
        """Active inputs of each group of ``shard``: its density of the real ones, in whole units, at least one where
        there are any."""
        real = self.real_columns(shard) if self.real_rows(shard) else 0
        width = self.width(shard)
        return width * min(max(round(self.density * real / width), 1), real // width)

    def width(self, shard: int) -> int:
        """Inputs of a unit of ``shard``: the most up to ``block`` that divide its real ones, so that all are alike."""
        real = self.real_columns(shard)
        return max(width for width in range(1, self.block + 1) if real % width == 0)

    def slots(self, shard: int) -> int:
        """Active entries of ``shard``: its density of the real entries, at least one where there are any.

        A dense weight has a slot for every entry, its padding included (which no gradient reaches). Of groups each has
        as many inputs as the others.
        """
        if not self.is_sparse:
            return self.shard_elements
        if self.group:
            return self.real_rows(shard) * self.inputs(shard)
        real = self.real_length(shard) * self.slice_elements
        return min(max(round(self.density * real), 1), real)

    def total_slots(self, shards: range | None = None) -> int:
        """Active entries of one trail over ``shards`` (all of them by default)."""
        return sum(self.slots(shard) for shard in (shards if shards is not None else range(self.shards)))

    def shape_of(self, length: int) -> tuple[int, ...]:
        """One trail's dense shape with ``length`` entries of the cut axis."""
        return (*self.shape[: self.cut_axis], length, *self.shape[self.cut_axis + 1 :])

    def local_shape(self, shards: range) -> tuple[int, ...]:
        """One trail's dense shape on a rank that holds ``shards``."""
        return self.shape_of(self.shard_length * len(shards))

    @property
    def real_shape(self) -> tuple[int, ...]:
        """One trail's dense shape without padding."""
        return self.shape_of(self.valid)
