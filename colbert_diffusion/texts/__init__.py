"""Texts in files: lines, collections, ids, and what to call alike. Knows no models and no indexes."""
