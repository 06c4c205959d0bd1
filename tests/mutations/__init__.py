"""What is broken on purpose, one thing at a time; `python -m tests.mutations` does it."""

from tests.mutations.images import IMAGES
from tests.mutations.model import MODEL
from tests.mutations.parallel import PARALLEL
from tests.mutations.reliability import RELIABILITY

MUTATIONS = [*PARALLEL, *MODEL, *IMAGES, *RELIABILITY]
