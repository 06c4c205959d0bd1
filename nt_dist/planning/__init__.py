"""What a layout costs before it is run: memory, bytes moved, time; from stated formulas and GPUs' data sheets."""
