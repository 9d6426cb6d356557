"""Training: where examples come from, what is learned from them, and how."""
