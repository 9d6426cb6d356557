"""The paper's table (arXiv 2605.07210) from its released checkpoints, through PLAID: BEIR's seven, MS MARCO's dev sets.

The releases' vectors of 3,584 or 4,096 dimensions would take 944 GiB on MS MARCO alone, so each is projected to --dim by a
PCA of --fit-on's passages first. paper.json has the hub ids, the collections and the published figures, which are printed
behind ours. Systems whose checkpoints are not released (PromptReps, DiffEmbed, RepLLaMA) are rows of
`colbert-diffusion compare` too, once somebody has trained them.

Usage: paper.py OUT --fit-on PASSAGES [--collections beir|msmarco] [--checkpoints NAME,...] [--dim 128] [--plan]

Interrupted, the same command goes on. A GPU of 24 GB or more, the hub, and `pip install ir_datasets`.
"""

import sys
from pathlib import Path

from colbert_diffusion import convert
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import read_json
from colbert_diffusion.evaluation import read_benchmark
from colbert_diffusion.evaluation.comparing import compare_systems, plan_lines, read_systems
from colbert_diffusion.evaluation.reporting import as_markdown, write_comparison
from colbert_diffusion.texts.collection import read_collection

sys.path.append(str(Path(__file__).parent / "bench"))
from common import errors_in_a_line, make_parser

FACTS = Path(__file__).with_suffix(".json")
MEASURES = {"beir": ["nDCG@10", "RR@10", "R@100", "R@1000"], "msmarco": ["RR@10", "nDCG@10", "R@1000"]}


def published_table(published: dict[str, dict[str, float]]) -> str:
    rows = [[name, of, f"{value:.3f}"] for of, values in published.items() for name, value in values.items()]
    return as_markdown([["published", "", ""], *rows])


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    facts = read_json(FACTS)
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fit-on", type=Path, required=True)
    parser.add_argument("--collections", choices=sorted(MEASURES), default="beir")
    parser.add_argument("--checkpoints", type=lambda text: text.split(","), default=list(facts["checkpoints"]))
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--plan", action="store_true")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.checkpoints) - set(facts["checkpoints"])):
        raise UserError(f"{', '.join(unknown)}: no release of {FACTS.name}; choose from {', '.join(facts['checkpoints'])}")
    benchmarks = [read_benchmark(name) for name in facts[given.collections]]
    folder = given.out / "systems"
    for name in given.checkpoints:
        if not (folder / name).exists():
            convert(facts["checkpoints"][name], folder / name, dim=given.dim, fit_on=read_collection(given.fit_on))
    systems = [one for one in read_systems(folder) if one.checkpoint is None or one.name in given.checkpoints]
    if given.plan:
        print("\n".join(plan_lines(benchmarks, systems, given.out)))
        return
    measures = MEASURES[given.collections]
    found = [compare_systems(one, systems, given.out, measures=" ".join(measures)) for one in benchmarks]
    print(write_comparison(found, measures, given.out / given.collections))
    print(published_table(facts["published"]))


if __name__ == "__main__":
    main()
