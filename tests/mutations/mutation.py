"""One thing broken on purpose, and the test that must notice."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """One thing broken.

    Attributes:
        what: What is broken, for the table.
        old: A text that stands once in nt_dist and launch_scripts.
        new: What takes its place.
        test: Node id of the test that must fail.
    """

    what: str
    old: str
    new: str
    test: str

    def file(self, root: Path) -> Path:
        """Return the file under ``root`` that has the text.

        Raises:
            LookupError: Not exactly one place has it.
        """
        files = [*(root / "nt_dist").rglob("*.py"), *(root / "launch_scripts").glob("*.sh")]
        found = {path: path.read_text(encoding="utf-8").count(self.old) for path in files}
        if sum(found.values()) != 1:
            raise LookupError(f"{self.what}: {sum(found.values())} places have\n{self.old}")
        return next(path for path, count in found.items() if count)
