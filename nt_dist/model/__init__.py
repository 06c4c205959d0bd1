"""What every family shares: trails, the table of weights, places, losses."""
