"""The NeuroTrails LLaMA: reads as single-device code. What a layer must do between ranks it asks of its Place."""
