"""The ground: errors, whole files or none, one writer, hashes, progress, optional packages. Knows no texts and no models."""
