"""What DeepSpeed asks about model parallelism: an object with Megatron's method names (its ``mpu``)."""

from torch import distributed as dist

from nt_dist.parallel.mesh import Mesh


class ModelParallelUnit:
    """The mesh as DeepSpeed sees it: the model axis is trail × tensor, and ZeRO partitions over the data axis alone.

    Megatron's names for tensor parallelism are left out on purpose: then DeepSpeed takes the whole model axis where it
    asks which gradients are counted once.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def get_model_parallel_rank(self) -> int:
        """Return r·T + t."""
        return self.mesh.model.rank

    def get_model_parallel_world_size(self) -> int:
        """Return R·T."""
        return self.mesh.model.degree

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Return the ranks that hold this data rank's model together."""
        return self.mesh.model.group

    def get_data_parallel_rank(self) -> int:
        """Return d."""
        return self.mesh.data.rank

    def get_data_parallel_world_size(self) -> int:
        """Return D."""
        return self.mesh.data.degree

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Return the ranks that hold the same part of the model."""
        return self.mesh.data.group
