"""Everything between a string and its vectors: prompts, readouts, projection, checkpoints, vector files. Knows no ColBERT."""
