"""The layout-free checkpoint: written, found, verified, read."""
