"""A LangChain retriever over an index. Needs langchain-core only."""

from pathlib import Path
from typing import Any

from ..common.errors import MissingPackageError

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingPackageError("the LangChain retriever needs langchain-core: pip install langchain-core") from error
from pydantic import ConfigDict, Field, PrivateAttr


class ColBERTDiffusionRetriever(BaseRetriever):
    """The k best passages as Documents, best first; their metadata holds pid, id, score and rank.

    Raises:
        UserError: there is no complete index, k is below 1, or the index does not search by the mode.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: Path
    """Folder of the index."""
    checkpoint: str | None = None
    """Where the index's checkpoint is now; None: where it was."""
    collection: Path | None = None
    """The file of its texts, where the index does not store them; None: where it was."""
    k: int = Field(default=10, ge=1)
    """Passages per query."""
    mode: str | None = None
    """"dense", "lexical" or "hybrid", as `Searcher.search` takes it; None: the index's own."""
    _searcher: Any = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        """Opens the index: what is wrong with it shows now, not at the first question."""
        super().__init__(**fields)
        from ..index.by_path import open_index

        self._searcher = open_index(self.index, checkpoint=self.checkpoint, collection=self.collection)
        self._searcher.mode_of(self.mode)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None, mode: str | None = None
    ) -> list[Document]:
        """`k`, `mode`: for this question alone, as `invoke(query, k=5)`."""
        pids, ranks, scores = self._searcher.search(query, k=self.k if k is None else k, mode=mode or self.mode)
        return [
            Document(
                page_content=self._searcher.collection[pid], metadata={"pid": pid, "id": own, "score": score, "rank": rank}
            )
            for pid, own, rank, score in zip(pids, self._searcher.ids(pids), ranks, scores, strict=True)
        ]
