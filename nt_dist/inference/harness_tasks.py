"""Task files of the lm-evaluation-harness, looked at before a model is loaded: what is missing, and in which file.

The harness itself finds out when it builds the requests, with an error that names neither.
"""

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from nt_dist.config.names import hint, nearest
from nt_dist.errors import ConfigError

OUTPUT_TYPES = ("loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until")
_LOCAL = ("json", "csv", "text", "parquet")  # readers of datasets that take data_files
_NEEDED = {
    "task": "the task's name",
    "dataset_path": "json, csv, text or parquet for local files, or a dataset's name",
    "doc_to_text": "the template of a context",
    "doc_to_target": "the template, or the field, of the right answer",
}


def check_task_files(tasks: Iterable[str | Mapping], include_path: str | None = None) -> None:
    """Check the files that ``--tasks`` names, and those in ``--include_path`` that describe one of the tasks.

    Args:
        tasks: Names of tasks, files (patterns too) or a folder, as the harness takes them.
        include_path: A folder of task files.

    Raises:
        ConfigError: With everything that is wrong, file by file.
    """
    names = [task for task in tasks if isinstance(task, str)]
    problems, files = [], []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            found = sorted(glob.glob(name))
            problems += [] if found else [f"--tasks {name}: no such file"]
            files += found
        elif Path(name).is_dir():
            files += sorted(glob.glob(f"{name}/*.yaml"))
    for file in files:
        problems += _problems(Path(file), _read(Path(file), problems))
    if include_path is not None:
        if not Path(include_path).is_dir():
            problems.append(f"--include_path {include_path}: no such folder")
        for file in sorted(Path(include_path).rglob("*.yaml")):
            content = _read(file, [])  # one that nobody asked for may be whatever it is
            if content.get("task") in names:
                problems += _problems(file, content)
    if problems:
        raise ConfigError(problems)


def _read(file: Path, problems: list[str]) -> dict[str, Any]:
    """A task file with those that it includes; functions that it names stay names."""
    try:
        return load_yaml(file, resolve_func=False)
    except Exception as problem:  # of the YAML reader, of the files that it includes
        problems.append(f"{file}: cannot be read: {' '.join(str(problem).split())}")
        return {}


def _problems(file: Path, content: Mapping[str, Any]) -> list[str]:
    """What is wrong with one file; nothing if it is a group of tasks, or could not be read."""
    if not content or "group" in content or isinstance(content.get("task"), list):
        return []
    kind = content.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        rule = f"must be one of {', '.join(OUTPUT_TYPES)}{hint(nearest(str(kind), OUTPUT_TYPES))}"
        return [f"{file}: output_type = {kind!r} {rule}"]
    needed = dict(_NEEDED)
    if kind == "multiple_choice":
        needed["doc_to_choice"] = "the choices, or the field that holds them"
    if "custom_dataset" in content:
        del needed["dataset_path"]
    problems = [
        f"{file}: {key} is missing: {what}{hint(nearest(key, [each for each in content if each not in needed]))}"
        for key, what in needed.items()
        if content.get(key) is None
    ]
    if content.get("test_split") is None and content.get("validation_split") is None:
        problems.append(f"{file}: test_split or validation_split is missing: the documents to evaluate on")
    return problems + [f"{file}: data_files: {each}: no such file" for each in _missing_files(content)]


def _missing_files(content: Mapping[str, Any]) -> list[str]:
    """Local data files that are not there."""
    files = (content.get("dataset_kwargs") or {}).get("data_files")
    if content.get("dataset_path") not in _LOCAL or files is None:
        return []
    each = files.values() if isinstance(files, Mapping) else [files]
    paths = [str(path) for entry in each for path in (entry if isinstance(entry, list) else [entry])]
    return [path for path in paths if "://" not in path and not glob.glob(path, recursive=True)]
