"""What a trained ensemble is worth: its metrics, its topologies, its report."""
