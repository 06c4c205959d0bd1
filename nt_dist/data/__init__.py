"""Samples by number to batches, in an order that depends on nothing but the seed; no text, no pictures."""
