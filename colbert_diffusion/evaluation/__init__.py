"""Evaluation that can be checked: public benchmarks -> TREC runs -> ir_measures, with paired bootstrap intervals.

Each step stands alone: a run file made here is measured alike by any other tool, and other tools' runs are measured
here. Importing it loads neither torch nor colbert.
"""

from ..encoding.scoring import prefix
from .benchmarks import Benchmark, read_benchmark
from .bm25 import bm25_run
from .exact import Cell, TextEncoder, cell_runs, exact_run
from .measuring import DEFAULT_MEASURES, Comparison, Report, compare, evaluate
from .plaid import build_index, plaid_run
from .runs import Run, read_run, write_run

__all__ = [
    "DEFAULT_MEASURES",
    "Benchmark",
    "Cell",
    "Comparison",
    "Report",
    "Run",
    "TextEncoder",
    "bm25_run",
    "build_index",
    "cell_runs",
    "compare",
    "evaluate",
    "exact_run",
    "plaid_run",
    "prefix",
    "read_benchmark",
    "read_run",
    "write_run",
]
