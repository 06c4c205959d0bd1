"""Pictures to samples: sources, decoding, crops and flips."""
