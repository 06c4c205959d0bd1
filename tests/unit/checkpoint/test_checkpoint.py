"""Saving and loading: any layout into any other, and every refusal."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from nt_dist.checkpoint import fragments as checkpoint_files
from nt_dist.checkpoint.checkpoint import collect, commit, load, save, write_part
from nt_dist.checkpoint.folder import begin, find
from nt_dist.checkpoint.inspect import examine
from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.config.settings import Run
from nt_dist.errors import CheckpointError
from nt_dist.model.weights import weight_specs
from nt_dist.sparsity.weight import padding_mask
from tests.unit.checkpoint.checkpoint_case import CONFIG, PROGRESS, content, model_part, on_one_rank, on_ranks, with_run


def save_on(folder, shape=(1, 1, 1, 1), storage="compact", config=CONFIG, seed=5, progress=PROGRESS):
    """Save a model drawn from ``seed``; return the checkpoint."""

    def work(mesh):
        model, optimizer = model_part(mesh, storage, config, seed)
        optimizer.step = progress.adam_step
        return save(folder, config, mesh, model, optimizer, progress)

    paths = on_ranks(shape, work)
    assert all(path == paths[0] for path in paths), paths
    if isinstance(paths[0], Exception):
        raise paths[0]
    return paths[0]


def load_on(path, shape=(1, 1, 1, 1), storage="compact", config=CONFIG, **options):
    """Load into a model of another seed; return (progress, adam step, content) of every rank, or errors."""

    def work(mesh):
        model, optimizer = model_part(mesh, storage, config, None)
        progress = load(path, config, mesh, model, optimizer, **options)
        return progress, optimizer.step, content(model, optimizer)

    return on_ranks(shape, work)


def load_error(path, **options):
    """The message of the CheckpointError that loading on one rank ends with."""
    (error,) = load_on(path, **options)
    assert isinstance(error, CheckpointError), error
    return str(error)


@pytest.fixture(scope="module")
def expected():
    """The content of the model that ``save_on`` saves by default."""
    return on_one_rank(lambda mesh: content(*model_part(mesh, "compact", CONFIG, 5)))


LAYOUTS = [(1, 1, 1, 1), (1, 3, 1, 1), (2, 1, 1, 2), (1, 2, 2, 4)]
STORAGES = ["compact", "masked", "compact", "masked"]


@pytest.mark.parametrize(("shape", "storage"), list(zip(LAYOUTS, STORAGES, strict=True)))
def test_what_any_layout_saves_any_other_loads(tmp_path, expected, shape, storage):
    path = save_on(tmp_path, shape, storage)
    assert examine(path) == []
    for other, into in zip(LAYOUTS, reversed(STORAGES), strict=True):
        seen = set()
        for progress, adam_step, found in load_on(path, other, into):
            assert progress == PROGRESS and adam_step == PROGRESS.adam_step
            for key, tensor in found.items():
                assert torch.equal(tensor, expected[key]), key
            seen |= found.keys()
        assert seen == expected.keys()


def test_every_fragment_is_written_once_and_the_work_is_divided(tmp_path):
    path = save_on(tmp_path, (1, 2, 2, 2))
    sizes = {name: entry.size for name, entry in read_manifest(path).files.items() if name.startswith("state")}
    whole = read_manifest(save_on(tmp_path / "one"))
    assert len(sizes) == 8
    assert sum(sizes.values()) < 1.5 * whole.files["state-00000.safetensors"].size
    assert max(sizes.values()) < 0.5 * sum(sizes.values())


def test_the_values_alone_are_loaded_for_an_evaluation(tmp_path, expected):
    path = save_on(tmp_path)

    def work(mesh):
        model, _ = model_part(mesh, "masked")
        model.bfloat16()
        other = replace(CONFIG, train=replace(CONFIG.train, lr=1.0))  # its schedule is nobody's business here
        return load(path, other, mesh, model, None), model

    progress, model = on_one_rank(work)
    assert progress == PROGRESS
    for weight in model:
        slots = weight.to_slots(weight.values)
        for (name, trail, shard), tensor in expected.items():
            if name == weight.spec.name:
                assert torch.equal(weight.fragment(slots, trail, shard), tensor[1].bfloat16())
                assert torch.equal(weight.positions(trail, shard).float(), tensor[0])


AVERAGED = replace(CONFIG, train=replace(CONFIG.train, average_decay=0.9))


def test_an_evaluation_takes_the_average_where_config_and_checkpoint_have_one(tmp_path, expected):
    averages = on_one_rank(lambda mesh: content(*model_part(mesh, "compact", AVERAGED, 5)))
    of_both, of_none = save_on(tmp_path / "both", config=AVERAGED), save_on(tmp_path / "none")
    assert read_manifest(of_both).moments == ("exp_avg", "exp_avg_sq", "average")
    cases = (of_both, AVERAGED, averages, 4), (of_both, CONFIG, averages, 1), (of_none, AVERAGED, expected, 1)
    for path, config, whole, row in cases:

        def work(mesh, path=path, config=config):
            model, _ = model_part(mesh, "masked")
            load(path, config, mesh, model, None)
            return model

        for weight in on_one_rank(work):
            slots = weight.to_slots(weight.values)
            for trail, shard in product(weight.trails, weight.shards):
                wanted = whole[weight.spec.name, trail, shard][row]
                assert torch.equal(weight.fragment(slots, trail, shard), wanted)


def test_an_average_that_a_checkpoint_lacks_begins_as_the_value(tmp_path):
    allowed = replace(AVERAGED, run=replace(AVERAGED.run, allow_schedule_change=True))
    ((_, _, found),) = load_on(save_on(tmp_path), config=allowed)
    for _, value, *_, average in found.values():
        assert torch.equal(average, value) and value.any()


SGD = replace(CONFIG, train=replace(CONFIG.train, optimizer="sgd"))


def test_sgd_has_its_one_moment(tmp_path):
    path = save_on(tmp_path, config=SGD)
    assert read_manifest(path).moments == ("momentum_buffer",)
    expected = on_one_rank(lambda mesh: content(*model_part(mesh, "compact", SGD, 5)))
    ((_, _, found),) = load_on(path, config=SGD)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_another_optimizer_is_refused_or_begins_with_moments_of_zero(tmp_path, expected):
    path = save_on(tmp_path)
    assert "train.optimizer = 'sgd' differs from the checkpoint's 'adamw'" in load_error(path, config=SGD)
    allowed = replace(SGD, run=replace(SGD.run, allow_schedule_change=True))
    ((_, _, found),) = load_on(path, config=allowed)
    for key, (positions, value, moment) in found.items():
        assert torch.equal(positions, expected[key][0]) and torch.equal(value, expected[key][1])
        assert not moment.any(), key


def at_density(density, **changes):
    """A stage of a run that ends at density 0.2, after PROGRESS and then with other settings of [sparsity]."""
    falls = {"start_density": 1.0, "density_until": PROGRESS.step / CONFIG.train.steps, "density_stages": 1, **changes}
    run = replace(CONFIG, sparsity=replace(CONFIG.sparsity, density=0.2, **falls))
    return replace(run, sparsity=replace(run.sparsity, density=density), whole=run)


@pytest.mark.parametrize(("start", "structure"), [(1.0, "entries"), (0.6, "entries"), (0.6, "groups"), (0.6, "blocks")])
def test_the_largest_weights_of_each_shard_stay_where_the_density_has_fallen(tmp_path, start, structure):
    changes = {"start_density": start, "structure": structure, "group_size": 3}
    before, after = at_density(start, **changes), at_density(0.2, **changes)
    path = save_on(tmp_path, (1, 1, 2, 2), config=before)
    old = on_one_rank(lambda mesh: content(*model_part(mesh, "compact", before, 5)))
    specs, seen = weight_specs(after), set()
    for shape, storage in (((1, 1, 1, 1), "masked"), ((1, 2, 2, 2), "compact")):
        for _, _, found in load_on(path, shape, storage, config=after):
            for (name, trail, shard), (positions, *state) in found.items():
                spec, (there, *had) = specs[name], old[name, trail, shard]
                if not spec.is_sparse:
                    assert torch.equal(torch.stack(state), torch.stack(had)), name
                    continue
                dense = torch.zeros(len(had), spec.shard_elements)
                dense[:, there.long()] = torch.stack(had)
                padding = padding_mask(spec, shard)
                if padding is not None:
                    dense[:, padding] = 0.0
                assert torch.equal(torch.stack(state), dense[:, positions.long()]), name
                if not spec.group:
                    least = dense[0].abs().sort(descending=True).values[spec.slots(shard) - 1]
                    assert len(positions) == spec.slots(shard) and (state[0].abs() >= least).all(), name
                else:  # the rows of a group share their columns: those of the largest norms
                    rows = dense[0].view(-1, spec.columns)[: spec.real_rows(shard)]
                    for first, group in zip(range(0, len(rows), 3), rows.split(3), strict=True):
                        own = positions[(positions // spec.columns) == first] % spec.columns
                        width = spec.width(shard)
                        norms = group[:, : spec.real_columns(shard)].square().sum(0).view(-1, width).sum(1)
                        wanted = norms.topk(spec.inputs(shard) // width).indices.sort().values
                        assert torch.equal(own.long().view(-1, width) // width, wanted[:, None].expand(-1, width)), name
                seen.add((name, trail, shard))
    assert structure == "entries" or any(spec.group for spec in specs.values())
    assert len(seen) == sum(spec.trails * spec.shards for spec in specs.values() if spec.is_sparse)


def test_another_density_than_the_runs_at_that_step_is_refused(tmp_path):
    path, other = save_on(tmp_path, config=at_density(1.0)), replace(CONFIG.sparsity, density=0.2)
    message = load_error(path, config=replace(CONFIG, sparsity=other))
    assert "sparsity.density = 0.2 differs from the checkpoint's 1.0" in message


def test_a_snapshot_no_longer_changes_with_the_model(tmp_path, expected):
    """What lets an asynchronous save write while the training goes on."""

    def work(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG, 5)
        snapshot = collect(CONFIG, mesh, model, optimizer, PROGRESS)
        for weight in model:
            weight.reset(99)
            for tensor in optimizer.states[weight.spec.name].values():
                tensor.fill_(7.0)
        writing = begin(tmp_path, PROGRESS.step)
        return commit(writing, CONFIG, mesh, snapshot, lambda: write_part(writing, snapshot))

    ((_, _, found),) = load_on(on_one_rank(work))
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_the_config_is_saved_beside_the_weights(tmp_path):
    path = save_on(tmp_path)
    assert (path / "config.toml").read_text() == CONFIG.to_toml()
    assert read_manifest(path).config == CONFIG.to_dict()


def test_another_model_is_refused_with_key_and_both_values(tmp_path):
    path = save_on(tmp_path)
    message = load_error(path, config=replace(CONFIG, model=replace(CONFIG.model, ffn_size=32)))
    assert "another model; run.dir=FOLDER begins a new run\n" in message
    assert "model.ffn_size" in message and "24" in message and "32" in message


def test_another_schedule_needs_the_flag(tmp_path):
    path = save_on(tmp_path)
    changed = replace(CONFIG, train=replace(CONFIG.train, lr=0.5))
    message = load_error(path, config=changed)
    assert "run.allow_schedule_change" in message and "train.lr" in message and "0.5" in message
    ((progress, _, _),) = load_on(path, config=replace(changed, run=Run(allow_schedule_change=True)))
    assert progress == PROGRESS


def test_other_data_is_refused(tmp_path):
    path = save_on(tmp_path)
    assert "abc" in load_error(path, data_digest="xyz")
    ((progress, _, _),) = load_on(path, data_digest="abc")
    assert progress == PROGRESS


def test_weights_of_another_shape_are_refused_even_if_the_config_agrees(tmp_path):
    """A change of the program, which no config shows."""
    path = save_on(tmp_path)
    other = replace(CONFIG, model=replace(CONFIG.model, vocab_size=28))

    def work(mesh):
        model, optimizer = model_part(mesh, "compact", other)
        return load(path, CONFIG, mesh, model, optimizer)

    with pytest.raises(CheckpointError, match=r"embedding: shape is \(32, 16\) there and \(28, 16\) here"):
        on_one_rank(work)


@pytest.mark.parametrize(("part", "value"), [(0, float("nan")), (1, float("inf")), (2, -1.0)])
def test_numbers_that_are_none_are_not_saved(tmp_path, part, value):
    before = save_on(tmp_path, progress=replace(PROGRESS, step=1))

    def work(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG, 5)
        if mesh.rank == 1:
            list(optimizer.states["blocks.0.mlp.down"].values())[part].view(-1)[3] = value
        return save(tmp_path, CONFIG, mesh, model, optimizer, PROGRESS)

    for error in on_ranks((1, 1, 1, 2), work):
        assert isinstance(error, CheckpointError) and "blocks.0.mlp.down" in str(error)
    assert find(tmp_path) == before and sorted(each.name for each in tmp_path.iterdir()) == ["latest", before.name]


def test_a_rank_that_cannot_write_fails_the_save_on_all(tmp_path, monkeypatch):
    before = save_on(tmp_path, progress=replace(PROGRESS, step=1))
    write_file = checkpoint_files.write_file

    def full_disk(path, chunks):
        if "state-00001" in path.name:
            path.write_bytes(b"half")
            raise CheckpointError(f"{path}: cannot be written: No space left on device")
        return write_file(path, chunks)

    monkeypatch.setattr(checkpoint_files, "write_file", full_disk)
    errors = on_ranks((1, 2, 1, 1), lambda mesh: save(tmp_path, CONFIG, mesh, *model_part(mesh, "compact"), PROGRESS))
    assert all(isinstance(error, CheckpointError) and "No space left" in str(error) for error in errors), errors
    assert find(tmp_path) == before and sorted(each.name for each in tmp_path.iterdir()) == ["latest", before.name]
    monkeypatch.undo()
    assert find(tmp_path) == before
    assert find(save_on(tmp_path).parent).name == "step-00000007"


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        save_on(tmp_path, progress=replace(PROGRESS, extra={"loss": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_old_checkpoints_go_as_the_run_says(tmp_path):
    config = with_run(keep=2, keep_every=4)
    for step in range(1, 8):
        save_on(tmp_path, config=config, progress=replace(PROGRESS, step=step))
    steps = sorted(int(each.name[5:]) for each in tmp_path.glob("step-*"))
    assert steps == [4, 6, 7]
    assert (tmp_path / "latest").read_text() == "step-00000007\n"


def test_damage_found_by_one_rank_is_an_error_on_all(tmp_path):
    older = save_on(tmp_path, (1, 3, 1, 1), progress=replace(PROGRESS, step=3))
    newer = save_on(tmp_path, (1, 3, 1, 1), progress=replace(PROGRESS, step=9), config=with_run(keep=3))
    files = [file for file in sorted(newer.iterdir()) if file.name != "manifest.json"]
    assert len(files) == 4
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        assert on_ranks((1, 2, 1, 1), lambda mesh: find(tmp_path, "", mesh)) == [older] * 2
        for error in on_ranks((1, 2, 1, 1), lambda mesh: find(tmp_path, str(newer), mesh)):
            assert isinstance(error, CheckpointError) and str(file) in str(error)
        file.write_bytes(whole)
    assert on_ranks((1, 2, 1, 1), lambda mesh: find(tmp_path, "", mesh)) == [newer] * 2
    files[-1].write_bytes(whole[:-1])
    for error in load_on(newer, (1, 2, 1, 1)):
        assert isinstance(error, CheckpointError) and str(files[-1]) in str(error)
