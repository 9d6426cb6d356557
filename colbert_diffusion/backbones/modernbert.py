"""ModernBERT and diffusion models trained from it: bidirectional by nature, RoPE, local and global attention."""

from transformers import ModernBertConfig, ModernBertModel

from .family import Family, passed_on

MODERNBERT = Family(
    name="modernbert",
    model_types=("modernbert",),
    native=lambda published: (ModernBertModel, ModernBertConfig(**passed_on(published))),
    set_aside=r"^(head|decoder|classifier)\.",
    head=(
        (r"^head\.(dense|norm)\.", r"\1."),
        (r"^decoder\.bias$", "bias"),
        (r"^decoder\.weight$", "output"),
    ),
    head_transforms=True,
)
