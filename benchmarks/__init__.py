"""What sparsity costs and saves: this trainer against the same model of plain linear layers, in one process."""
