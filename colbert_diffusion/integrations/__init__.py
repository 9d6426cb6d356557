"""Other frameworks' shapes over our Searcher. Each module imports its framework; this package imports none."""
