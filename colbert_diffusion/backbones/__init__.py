"""Published weights -> a plain transformers module, proven bidirectional (or causal). Knows nothing about retrieval.

One short, mostly declarative file per family; to support another, write such a file and add it here.
"""

from ..common.errors import UserError
from .a2d import A2D
from .bert import BERT
from .causal import CAUSAL
from .dream import DREAM
from .family import Family
from .llada import LLADA
from .modernbert import MODERNBERT

FAMILIES: dict[str, Family] = {family.name: family for family in (DREAM, LLADA, A2D, MODERNBERT, BERT, CAUSAL)}


def find_family(model_type: str, name: str | None = None) -> Family:
    """The family that reads `model_type`, or the one asked for by `name` if it can.

    Raises:
        UserError: unknown name, unsupported model_type, or a family that does not read it.
    """
    if name is not None:
        if name not in FAMILIES:
            raise UserError(f'family "{name}" is unknown; choose one of {sorted(FAMILIES)}')
        family = FAMILIES[name]
        if model_type not in family.model_types + family.also:
            raise UserError(
                f'family "{name}" reads model_type {", ".join(family.model_types + family.also)}, '
                f'this backbone is "{model_type}"; leave the family out to have it chosen'
            )
        return family
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    supported = "; ".join(f"{family.name}: {', '.join(family.model_types)}" for family in FAMILIES.values())
    raise UserError(
        f'model_type "{model_type}" is not supported ({supported}); '
        "to add it, write a family file in colbert_diffusion/backbones and list it in FAMILIES"
    )
