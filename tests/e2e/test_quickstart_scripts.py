"""The scripts of launch_scripts/ without the minutes they take: stand-ins record what the real commands would be told.

CI runs the real short quickstart after the tests.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.e2e.commands import ROOT, run_command

# An interpreter that makes environments in which pip only writes down its arguments; it fails where a file "broken" is.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c "*) exit 0 ;;
    --version) echo "Python 3.11.0" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip "*) echo "$*" >> "{folder}/pip.log"; [[ ! -e "{folder}/broken" ]] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout of only what environment.sh reads, and an interpreter that installs nothing."""
    shutil.copytree(ROOT / "launch_scripts", tmp_path / "launch_scripts")
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python3.11"
    python.write_text(FAKE_PYTHON.format(folder=tmp_path))
    python.chmod(0o755)
    return tmp_path


def _activate(checkout, **variables):
    script = f"set -euo pipefail; source {checkout}/launch_scripts/environment.sh; command -v python"
    variables = {"NT_DIST_PYTHON": str(checkout / "python3.11"), "NT_DIST_VENV": "", **variables}
    return run_command("bash", "-c", script, **variables)


def _installs(checkout):
    """How often pip was asked to install the package."""
    log = checkout / "pip.log"
    return log.read_text().count(f"{checkout}[dev]") if log.exists() else 0


def test_an_environment_is_made_once_with_the_pins_torch_first(checkout):
    first = _activate(checkout)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == f"{checkout}/.venv/bin/python"
    calls = (checkout / "pip.log").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["setuptools", "torch", f"{checkout}[dev]"]
    assert all(f"--constraint {checkout}/constraints.txt" in call for call in calls)
    assert ["--quiet" in call for call in calls] == [True, False, True]  # pip shows how it gets on with gigabytes
    assert _activate(checkout).returncode == 0
    assert _installs(checkout) == 1


def test_a_changed_pin_makes_the_environment_anew(checkout):
    _activate(checkout)
    (checkout / ".venv" / "old").touch()
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("another==1.0\n")
    assert _activate(checkout).returncode == 0
    assert _installs(checkout) == 2 and not (checkout / ".venv" / "old").exists()


def test_an_installation_that_failed_is_started_anew(checkout):
    (checkout / "broken").touch()
    failed = _activate(checkout)
    assert failed.returncode == 1 and "the installation failed" in failed.stderr
    assert f"{checkout}/.venv/bin/python" not in failed.stdout
    (checkout / "broken").unlink()
    assert _activate(checkout).returncode == 0
    assert _activate(checkout).returncode == 0
    assert _installs(checkout) == 1


def test_an_interpreter_that_does_not_run_is_named(checkout):
    done = _activate(checkout, NT_DIST_PYTHON="python9.9")
    assert done.returncode == 1 and "python9.9" in done.stderr and "3.11 or 3.12" in done.stderr


def test_an_environment_of_ones_own_is_used_as_it_is(checkout):
    done = _activate(checkout, NT_DIST_VENV=sys.prefix)
    assert done.stdout.strip() == f"{sys.prefix}/bin/python" and not (checkout / ".venv").exists()
    done = _activate(checkout, NT_DIST_VENV=str(checkout / "nowhere"))
    assert done.returncode == 1 and "nowhere" in done.stderr


# Commands that write down how they were called; the python among them is real where it is given a program to read.
STAND_IN = """#!/usr/bin/env bash
name="$(basename "$0")"
if [[ "$name" == python && "$1" != tools/* ]]; then exec "{python}" "$@"; fi
echo "$name ${{DS_ACCELERATOR:-}} $*" >> "{log}"
[[ "$name" != "{broken}" ]]
"""


def _run_quickstart(folder, *arguments, broken=""):
    """Run quickstart.sh with stand-ins for the tools and the launcher; the result, and their calls word by word."""
    log = folder / "calls.log"
    (folder / "bin").mkdir()
    for name in ("python", "deepspeed"):
        command = folder / "bin" / name
        command.write_text(STAND_IN.format(python=sys.executable, log=log, broken=broken))
        command.chmod(0o755)
    done = run_command(
        *("bash", "launch_scripts/quickstart.sh", *arguments),
        NT_DIST_VENV=str(folder),
        PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    return done, [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def test_quickstart_prepares_trains_and_writes_with_the_same_settings(tmp_path):
    done, calls = _run_quickstart(tmp_path, "--short", f"run.dir={tmp_path}/run", "train.steps=7")
    assert done.returncode == 0, done.stderr
    prepare, train, write = calls
    assert prepare[:3] == ["python", "cpu", "tools/prepare_data.py"]
    assert train[:4] == ["deepspeed", "cpu", "--num_gpus", "2"] and "train.py" in train
    settings = train[train.index("configs/ds/zero1.json") + 1 :]
    assert settings == prepare[prepare.index("configs/quickstart.toml") + 1 :]
    assert settings.index("train.steps=60") < settings.index("train.steps=7")  # the last one wins
    assert write[:5] == ["python", "cpu", "tools/generate.py", "--checkpoint", f"{tmp_path}/run"]
    following = done.stdout.split("== what next ==\n")[1].split("\n")
    ends = [line.split()[-1] for line in following if line]
    assert ends == [f"{tmp_path}/run/tensorboard", f"{tmp_path}/run", "corrupt:0.2"]


def test_quickstart_stops_where_training_fails(tmp_path):
    done, calls = _run_quickstart(tmp_path, broken="deepspeed")
    assert done.returncode != 0
    assert [call[0] for call in calls] == ["python", "deepspeed"]


@pytest.mark.parametrize("argument, says", [("--shrot", "--short"), ("train.stesp=3", "train.steps")])
def test_quickstart_refuses_what_it_does_not_know(tmp_path, argument, says):
    done, calls = _run_quickstart(tmp_path, argument)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert calls == []


def test_scripts_are_sound():
    """Every script parses, stops at the first error and can be started."""
    scripts = [*ROOT.glob("launch_scripts/*.sh"), ROOT / ".ci" / "run"]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        if script.name != "environment.sh":
            assert os.access(script, os.X_OK), script
            assert re.search(r"^set -euo pipefail$", script.read_text(), re.MULTILINE), script
