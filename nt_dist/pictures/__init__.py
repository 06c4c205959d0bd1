"""Pictures of runs, drawn by matplotlib without a display; each function takes plain figures and returns a Figure."""
