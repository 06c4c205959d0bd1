"""What launch scripts refuse before they do anything."""

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
