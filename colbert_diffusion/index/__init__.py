"""What a user calls an index: built, opened, searched, updated, planned. Knows no HTTP and no training.

by_path     build and open by folder
indexing    ColBERT's Indexer with our guards
dense       ColBERT's Searcher with our guards: by vectors
searching   the same by words, or by both
updating    ColBERT's IndexUpdater, by our own way: beside the old index, then swapped
opening     from a folder to its config, checkpoint and texts
lexical     words beside vectors: BM25's or predicted, written, updated, scored
postings    the inverted index itself
fusion      two scores in one
tuned       a weight that was tuned, into the manifest
layout      every file of an index, as data
manifest    the files of an index, with their hashes
places      where an index grows, and how it takes its place
planning    what a build will cost
trial       seconds of each step on this machine, for `planning`
"""
