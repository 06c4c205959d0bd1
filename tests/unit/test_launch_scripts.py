"""What launch scripts refuse before they do anything, and that containers install as they do."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text", ["$(touch it)", "`touch it`", "a;b", "a&b", "a|b", 'a"b', "a'b", "a>b", "a\nb", "a*", "a\\b"]
)
def test_nothing_that_a_shell_would_act_on_is_handed_to_other_hosts(text, tmp_path):
    script = [str(ROOT / "launch_scripts" / "deepspeed_multinode.sh"), str(tmp_path / "hosts"), "--", f"run.dir={text}"]
    done = subprocess.run(["bash", *script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"error: run.dir={text} cannot be handed to the shells of other hosts" in done.stderr
    assert not list(tmp_path.iterdir())


def test_containers_install_as_the_scripts_do():
    """By their text: nothing here can build them. torch first, with the pins; extras are those of setup.py."""
    extras = (ROOT / "setup.py").read_text()
    for name in ("Dockerfile", "nt_dist.def"):
        text = (ROOT / "containers" / name).read_text()
        torch, own = re.findall(r"pip install --no-cache-dir (.*?)(?: \\)?$", text, re.MULTILINE)
        assert torch == "-c constraints.txt setuptools torch", name
        extra = re.fullmatch(r'--no-build-isolation -c constraints\.txt -e "\.\[(\w+)\]"', own)[1]
        assert f'"{extra}":' in extras and "g++" in text and "train.py" in text and "Not tried" in text
