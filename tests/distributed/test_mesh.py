"""The mesh: rank order, groups, collectives; and one outcome on all ranks."""

import pytest
import torch

from benchmarks.traffic import OTHER, counted_traffic
from nt_dist.errors import CheckpointError, ConfigError, DataError, RunError
from nt_dist.families import make_config
from nt_dist.parallel.agree import agree
from nt_dist.parallel.handshake import check_alike
from nt_dist.parallel.mesh import AXES, init_mesh
from nt_dist.testing import RankError, run_distributed


def mesh_of(world_size, **degrees):
    batch = {"batch_size": 32 * world_size, "micro_batch_size": 2 * world_size}
    return init_mesh(make_config({"parallel": degrees, "train": batch, "trails": {"count": 4}}, None, world_size))


def _stand(rank, world_size, degrees):
    mesh = mesh_of(world_size, **degrees)
    axes = [getattr(mesh, name) for name in AXES]
    sums = [mesh.all_reduce(torch.tensor([1 << rank]), (axis.name,)).item() for axis in axes]
    return [(axis.rank, axis.degree) for axis in axes], sums, mesh.is_main


@pytest.mark.parametrize(
    "degrees", [{}, {"tensor": 2}, {"trail": 2}, {"pipe": 2}, {"tensor": 2, "pipe": 2}, {"trail": 2, "tensor": 2}]
)
def test_ranks_stand_as_deepspeed_counts_them(degrees):
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    pipe, trail, tensor = (degrees.get(name, 1) for name in ("pipe", "trail", "tensor"))
    data = 4 // (pipe * trail * tensor)
    topology = PipeModelDataParallelTopology(num_pp=pipe, num_dp=data, num_mp=trail * tensor)
    places = []
    for rank, (place, sums, is_main) in enumerate(run_distributed(_stand, 4, degrees)):
        (p, _), (d, _), (r, _), (t, _) = place
        places.append((p, d, r, t))
        assert [degree for _, degree in place] == [pipe, data, trail, tensor]
        assert rank == ((p * data + d) * trail + r) * tensor + t
        assert topology.get_rank(pipe=p, data=d, model=r * tensor + t) == rank
        assert is_main == (rank == 0)
        for axis, mask in enumerate(sums):  # who took part in the all-reduce along each axis
            others = [each for each in range(4) if mask >> each & 1]
            assert rank in others and len(others) == place[axis][1]
    for axis in range(4):
        assert len({place[axis] for place in places}) == (pipe, data, trail, tensor)[axis]


def _collectives(rank, world_size):
    mesh = mesh_of(world_size, trail=2)
    number = torch.tensor([float(rank)])
    return (
        mesh.all_reduce(number.clone()).item(),
        mesh.all_reduce(number.clone(), op="max").item(),
        mesh.all_reduce(number.clone(), ("data", "trail"), op="min").item(),
        mesh.gather_objects({"rank": rank}),
        mesh.broadcast_object(f"from {rank}", source=2),
    )


def test_collectives():
    for result in run_distributed(_collectives, 4):
        assert result == (6.0, 3.0, 0.0, [{"rank": each} for each in range(4)], "from 2")


def _agree(rank, world_size, error, failing, only_main):
    mesh = mesh_of(world_size)

    def work():
        if rank in failing:
            raise error
        return rank * 10

    return agree(mesh, work, CheckpointError, only_main)


def _agree_and_count(rank, world_size):
    """What agreeing comes to, and what is said for it while all is well."""
    with counted_traffic(objects=True) as traffic:
        mesh = mesh_of(world_size)
        traffic.start_all()
        found = agree(mesh, lambda: rank * 10)
        check_alike(mesh, "mind", {"thought": "the same"})
        return found, dict(traffic.calls), dict(traffic.payload)


def test_everybody_works_or_the_main_rank_does():
    flag, digest, reductions = 4, 2 * 32, (OTHER, "all_reduce")  # whatever the number of ranks
    for rank, found in enumerate(run_distributed(_agree_and_count, 2)):
        assert found == (10 * rank, {reductions: 2}, {reductions: flag + digest})
    assert run_distributed(_agree, 2, None, [], True) == [0, 0]


@pytest.mark.parametrize(
    "error,failing,only_main,kind,text",
    [
        (DataError("x is bad"), [1], False, DataError, "x is bad (rank 1)"),
        (OSError("disk full"), [0, 1], False, CheckpointError, "disk full"),  # everywhere: no rank's fault
        (ConfigError(["a", "b"]), [1], False, ConfigError, "a (rank 1)\nb (rank 1)"),
        (DataError("x is bad"), [0], True, DataError, "x is bad"),
    ],
)
def test_a_failure_is_everybodys(error, failing, only_main, kind, text):
    with pytest.raises(RankError) as caught:
        run_distributed(_agree, 2, error, failing, only_main)
    assert type(caught.value.error) is kind and str(caught.value.error) == text


def _wrong_size(rank, world_size):
    mesh_of(4)


def test_ranks_that_are_not_there_are_noticed():
    with pytest.raises(RankError) as caught:
        run_distributed(_wrong_size, 2)
    assert type(caught.value.error) is RunError and "2 ranks have met" in str(caught.value.error)


def _asks_for_tf32(rank, world_size):
    cuda, found = torch.backends.cuda.matmul, []
    for allowed in (True, False):
        init_mesh(make_config({"train": {"tf32": allowed}}, None, world_size))
        found.append((cuda.allow_tf32, torch.backends.cudnn.allow_tf32))
    return found


def test_products_and_convolutions_round_to_tf32_where_that_is_asked_for():
    assert run_distributed(_asks_for_tf32, 1) == [[(True, True), (False, False)]]
