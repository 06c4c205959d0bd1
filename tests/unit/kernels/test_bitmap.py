"""Products with bitmaps are the dense ones, by every path; what compiles them waits for nobody and trusts nobody."""

import runpy
import threading
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from nt_dist.kernels import bitmap, build
from nt_dist.kernels.bitmap import FEW, PATHS, Bitmap, Chooser, faster, fastest_path
from nt_dist.kernels.build import BuildError, load_library

ROOT = Path(__file__).parents[3]
HERE = PATHS[: PATHS.index(fastest_path()) + 1]  # on a machine with AVX-512 all
SHAPES = [(1, 1, 1), (3, 67, 130), (2, 5, 64), (1, 130, 63), (2, 9, 200), (1, 3, 1025)]


def matrices(shape, density, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    dense = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    if 0 < density < 1 and shape[1] > 3:
        dense[:, 0] = 0.0  # an empty row before a full one
        dense[:, 1] = 1.5
        dense[-1, -1] = 0.0
    return dense.to(dtype)


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_every_path_is_the_dense_product(density, dtype, path):
    for shape in SHAPES:
        dense = matrices(shape, density, dtype)
        held = Bitmap.of(dense)
        assert torch.equal(held.dense(path=path), dense) and held.dense(path=path).dtype == dtype
        for rows in (1, 2, 3, 5, 8, 9, FEW, FEW + 1):
            x = torch.randn(shape[0], rows, shape[2], generator=torch.Generator().manual_seed(rows))
            close = {"rtol": 1e-5, "atol": 1e-5 * shape[2] ** 0.5}
            torch.testing.assert_close(held.multiply(x, path), x @ dense.float().mT, **close)
            shared = x[:1].expand(shape[0], -1, -1)
            torch.testing.assert_close(held.multiply(shared, path), shared @ dense.float().mT, **close)
            strided = x.mT.contiguous().mT
            torch.testing.assert_close(held.multiply(strided, path), x @ dense.float().mT, **close)
            low = held.multiply(x.bfloat16(), path)
            assert low.dtype == torch.bfloat16
            torch.testing.assert_close(low, held.multiply(x.bfloat16().float(), path).bfloat16())


def test_rows_are_split_over_threads():
    dense = matrices((2, 300, 400), 0.4, torch.float32)  # larger than what one thread takes alone
    held, x, threads = Bitmap.of(dense), torch.randn(2, 3, 400), torch.get_num_threads()
    alone = held.multiply(x)
    try:
        torch.set_num_threads(3)
        assert torch.equal(held.multiply(x), alone) and torch.equal(held.dense(), dense)
    finally:
        torch.set_num_threads(threads)


def test_what_needs_a_gradient_has_it():
    dense, x = matrices((2, 7, 9), 0.5, torch.float32), torch.randn(2, 3, 9, requires_grad=True)
    held = Bitmap.of(dense)
    held.multiply(x).sum().backward()
    torch.testing.assert_close(x.grad, dense.sum(1, keepdim=True).expand_as(x))
    with torch.no_grad():
        torch.testing.assert_close(held.multiply(x), x @ dense.mT)


def test_values_that_are_not_those_of_the_places_are_refused():
    active = torch.tensor([[[True, False, True]]])
    with pytest.raises(ValueError, match=r"has 3 values for 2 places of \[1, 1, 3\]"):
        Bitmap(torch.ones(3), active)
    with pytest.raises(ValueError, match="values must be float32 or bfloat16, not torch.float16"):
        Bitmap(torch.ones(2, dtype=torch.float16), active)


def test_the_quicker_of_two_is_found():
    assert faster(lambda: None, lambda: sum(range(100_000))) and not faster(lambda: sum(range(100_000)), lambda: None)


def test_the_caches_are_as_a_model_leaves_them(monkeypatch):
    asked = []

    def measured(one, other, between):
        before = chooser._rest.clone()
        between()
        asked.append((one().shape, len(other()), (chooser._rest != before).sum()))
        return True

    monkeypatch.setattr(bitmap, "faster", measured)
    monkeypatch.setattr(bitmap, "fastest_path", lambda: PATHS[0])
    chooser = Chooser(4000, rows=5)
    held = Bitmap.of(matrices((3, 6, 10), 0.5, torch.float32))
    assert not chooser(held) and not asked  # built anew each time it is never faster
    monkeypatch.setattr(bitmap, "fastest_path", fastest_path)
    if len(HERE) > 1:
        assert chooser(held) and chooser(held)
        assert asked == [((3, 5, 6), 3, 1000)]  # once for each size; all of the model's bytes between


def test_without_a_compiler_it_is_torch_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    for each in (bitmap.library, bitmap.fastest_path):
        each.cache_clear()
    try:
        dense, x = matrices((1, 7, 9), 0.5, torch.bfloat16), torch.randn(1, 2, 9)
        for _ in range(2):
            torch.testing.assert_close(Bitmap.of(dense).multiply(x), x @ dense.float().mT)
        assert [each.getMessage() for each in caplog.records] == [
            "sparse matrices have no products of their own here, and stay dense: there is no C++ compiler (g++)"
        ]
    finally:
        for each in (bitmap.library, bitmap.fastest_path):
            each.cache_clear()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A source that compiles in no time, in place of the package's."""
    source = tmp_path / "source" / "small.cpp"
    source.parent.mkdir()
    source.write_text('#include "small_part.inc"\n')
    source.with_name("small_part.inc").write_text('extern "C" int seven() { return 7; }\n')
    monkeypatch.setattr(build, "__file__", str(source.with_name("build.py")))
    return source


def test_a_library_is_compiled_once_and_anew_for_another_source(small, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    found, threads = (
        [],
        [threading.Thread(target=lambda: found.append(load_library("small", folder))) for _ in range(2)],
    )
    for each in threads:  # both at once: each puts the same file in place
        each.start()
    for each in threads:
        each.join()
    assert [each.seven() for each in found] == [7, 7]
    assert len(list(folder.iterdir())) == 1 and folder.stat().st_mode & 0o777 == 0o700
    commands, run = [], build._run
    monkeypatch.setattr(build, "_run", lambda command: commands.append(command) or run(command))
    assert load_library("small", folder).seven() == 7 and [each[1:] for each in commands] == [["--version"]]
    small.with_name("small_part.inc").write_text('extern "C" int seven() { return 8; }\n')
    assert load_library("small", folder).seven() == 8
    small.with_name("small_part.inc").write_text("nonsense")
    with pytest.raises(BuildError, match="fails: .*error"):
        load_library("small", folder)
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_others_can_write_to_is_not_trusted(small, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BuildError, match="cache must be this user's own, and writable to nobody else"):
        load_library("small", folder)
    assert not list(folder.iterdir())


def test_a_compiler_that_hangs_is_left(small, tmp_path, monkeypatch):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 20\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(build, "_TIMEOUT", 0.1)
    with pytest.raises(BuildError, match="timed out"):
        load_library("small", tmp_path / "cache")


def test_a_wheel_has_the_sources(monkeypatch):
    said = {}
    monkeypatch.setattr("setuptools.setup", said.update)
    runpy.run_path(str(ROOT / "setup.py"))
    patterns = said["package_data"]["nt_dist.kernels"]
    sources = [each.name for each in Path(bitmap.__file__).parent.glob("bitmap*") if each.suffix != ".py"]
    assert len(sources) == 2 and all(any(fnmatch(name, pattern) for pattern in patterns) for name in sources)
