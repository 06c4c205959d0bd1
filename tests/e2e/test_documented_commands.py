"""Every command of the README, of pages beside it and of the tools' own help runs as it stands, on small models.

What is added to a command are settings that make it small. Those of launch_scripts/ are read as far as their settings
here: CI runs the quickstarts, and tests/cluster the launchers on hosts of its own.
"""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from nt_dist.families import load_config
from tests.e2e.commands import ROOT, run_command
from tests.e2e.preloaded import Commands
from tests.unit.images.picture_case import encoded, pixels, write_folder, write_parquet

SYNOPSIS = re.compile(
    r"\[[-\w]|…|\bFILE\b|\bFOLDER\b|\bRUN\b|\bCHECKPOINT\b|configs/X|tests/cluster"
)  # what stands for something, or is shown by tests/cluster
ELSEWHERE = {
    "tools/check_gpu.py": "tests/unit/benchmarks/test_gpu.py",
    "tools/benchmark.py": "tests/unit/benchmarks",
    "launch_scripts/test.sh": "this is it",
}
SHORT = "train.steps=4 train.warmup_steps=1 train.precision=fp32 run.eval_batches=2 run.eval_every=0 run.save_every=4"
SHORT += " data.num_workers=0"
SHAPE = "model.hidden_size=16 model.ffn_size=32 model.num_attention_heads=2 model.num_kv_heads=2 model.vocab_size=400"
SHAPE += " model.max_seq_len=16 model.num_layers=2 data.source=text data.path=docs data.validation=0.2"
SHAPE += " data.tokenizer=auto data.max_documents=40 train.batch_size=8 train.micro_batch_size=1"
LLAMA = f"{SHORT} {SHAPE} trails.layers=1"
RESNET = f"{SHORT} train.batch_size=16 train.micro_batch_size=2 model.norm_batch=2 sparsity.update_every=2"
IMAGENET = f"{RESNET} model.depths=[1,1] trails.layers=1 model.image_size=32 model.num_classes=5 train.epochs=3"
IMAGENET += " data.benchmark=none"
SMALL = {  # by what a command's config is named
    "quickstart.toml": LLAMA,
    "llama_130m.toml": f"{LLAMA} data.subset=",
    "llama_350m.toml": f"{LLAMA} data.subset=",
    "run.toml": LLAMA,
    "quickstart_images.toml": RESNET,
    "resnet50_imagenet.toml": IMAGENET,
}
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
STUDIES = {
    "compare.py": LLAMA,
    "diversity.py": f"--steps 4 --densities 0.5 --layers 1 run.eval_batches=2 {SHAPE} model.num_layers=4",
}


def _commands() -> list[str]:
    """Each command once, a line each, comments cut off, in the order of the documents."""
    pages = ("README.md", "docs/planning.md", "docs/python.md", "docs/reliability.md")
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages]
    texts += [ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in ROOT.glob("tools/*.py")]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if re.match(r"    (\$ )?(bash|python|deepspeed|mpirun) ", line)]
    lines = [re.split("   #| {8}many", line)[0].removeprefix("    $ ") for line in lines]
    return list(dict.fromkeys(shlex.join(shlex.split(line)) for line in lines if not SYNOPSIS.search(line)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout, and beside it what a user has: a LLaMA, texts, pictures."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "docs", "tools", "launch_scripts", "train.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "other.txt").write_text("Another text, of which nothing has been seen.\n" * 40)
    (folder / "short.txt").write_text("too few words for two of them")
    quickstart = (ROOT / "configs" / "quickstart.toml").read_text()
    (folder / "run.toml").write_text(quickstart.replace("runs/quickstart", "runs/imported"))
    sizes = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(folder / "folder")
    (folder / "cifar10").mkdir()
    for name in ("train", "test"):
        contents = [encoded(pixels(number, 32)) for number in range(16)]
        write_parquet(folder / "cifar10" / f"{name}.parquet", contents, [number % 10 for number in range(16)])
        write_folder(folder / "imagenet" / {"train": "train", "test": "val"}[name], counts=(4,) * 5)
    return folder


@pytest.fixture(scope="module")
def commands(place):
    """What runs them, in that folder, where the quickstarts have trained."""
    running = Commands(place)
    for config in ("quickstart", "quickstart_images"):
        words = ["train.py", "--config", f"configs/{config}.toml", *SMALL[f"{config}.toml"].split()]
        code, written = running.run(words)
        assert code == 0, written
    runs = place / "runs"
    for name in ("one", "two"):
        shutil.copytree(runs / "quickstart", runs / name)
    (runs / "quickstart" / "checkpoints" / "step-00000300").symlink_to("step-00000004")
    yield running
    running.close()


@pytest.mark.parametrize("command", _commands())
def test_a_documented_command_does_its_work(command, place, commands, monkeypatch):
    monkeypatch.chdir(place)
    program, *words = shlex.split(command.replace("/data/imagenet", "imagenet"))
    config = next((Path(word) for word in words if word.endswith(".toml")), Path("configs/quickstart.toml"))
    if words[0] in ELSEWHERE:
        return
    if program == "bash":
        assert Path(words[0]).is_file()
        load_config(config, [word for word in words if re.match(r"\w+\.\w+=", word)], check_paths=False)
        return
    ranks = 0
    if program == "deepspeed":  # --num_gpus N
        ranks, words = min(4, int(words[1])), words[2:]
    if program == "mpirun":  # -np N
        small = ("mpirun", "-np", "2", "--oversubscribe", *words[2:], *SMALL[config.name].split(), "data.num_workers=1")
        done = run_command(*small, cwd=place, PYTHONPATH=str(ROOT), **AS_ROOT)
        assert done.returncode == 0, done.stderr
        return
    tool = Path(words[0]).name
    trains = tool in ("train.py", "prepare_data.py", "import_hf.py")
    small = SMALL[config.name] if trains else STUDIES.get(tool, "")
    code, written = commands.run([*words, *small.split()], ranks)
    assert code == 0 and "Traceback" not in written, written
    for flag in ("--json", "--out"):
        assert flag not in words or Path(words[words.index(flag) + 1]).exists()


def test_there_are_commands_of_every_tool():
    found = {Path(word).name for command in _commands() for word in command.split() if word.endswith(".py")}
    tools = {path.name for path in ROOT.glob("tools/*.py")} | {"train.py"}
    assert len(_commands()) > 30 and tools - found == {"check_resume.py", "train_tokenizer.py"}


@pytest.mark.parametrize(
    "words, says",
    [
        ("train.py run.dir=runs/bad model.hiden_size=3", "model.hiden_size"),
        (f"train.py --config configs/resnet50_imagenet.toml data.path=imagenet run.dir=runs/bad {IMAGENET} "
         "model.num_classes=9", "4 of model.num_classes = 9 classes have no picture"),
        ("tools/evaluate.py --checkpoint runs/quickstart_images --data imagenet/val", "which training does not have"),
        ("tools/evaluate.py --checkpoint runs/quickstart --json runs", "--json runs: must be a plain file"),
        ("tools/evaluate.py --checkpoint runs/quickstart --full run.eval_batches=0 --data short.txt", "need two"),
    ],
)  # fmt: skip
def test_what_all_ranks_find_wrong_is_said_once(words, says, place, commands):
    code, written = commands.run(words.split(), ranks=2)
    assert code == 2 and written.count("error:") == 1 and says in written, written
