"""What watches the ranks of a run and ends a job of which one stands still."""
