"""Default prompts for a backbone that brings none: what a zero-shot checkpoint made by `convert` says to the model.

The layout is DiffRetriever's (arXiv 2605.07210); the wording is ours. A released checkpoint's ids always win.
"""

from transformers import PreTrainedTokenizerBase

from ..common.errors import UserError
from ..config import PromptParts, Side

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 8: "eight", 16: "sixteen"}
TEXT = "\u241ftext\u241f"  # stands for the text while the chat template is applied
ANSWER = "\u241fanswer\u241f"


def plain_prompt(tokenizer: PreTrainedTokenizerBase, marker: str = "", *, end: bool = False) -> PromptParts:
    """The text with what its tokenizer puts around every text: [CLS] text [SEP], or what begins a text and nothing behind it.

    Args:
        marker, end: what comes before the text, and whether the end token comes behind it, where there is no [CLS]. A text
            is tokenised alone, so that a marker's last space stays a token of its own.
    """
    if tokenizer.cls_token is not None and tokenizer.sep_token is not None:
        return PromptParts(tokenizer.cls_token, tokenizer.sep_token)
    begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    begin = str(tokenizer.bos_token) if begins else ""
    return PromptParts(begin + marker, tail=(tokenizer.eos_token or "") if end else "")


def default_prompt(tokenizer: PreTrainedTokenizerBase, side: Side, k: int) -> PromptParts:
    """What asks for words: [CLS] text [SEP] [SEP] for BERT-like tokenizers, a chat turn or plain words for the rest.

    Args:
        k: vectors asked for; the instruction's number word follows it.
    """
    if tokenizer.cls_token is not None and tokenizer.sep_token is not None:
        return PromptParts(tokenizer.cls_token, tokenizer.sep_token, tokenizer.sep_token)
    number = NUMBERS.get(k, str(k))
    words = "word" if k == 1 else "words"
    opening = f'{side.capitalize()}: "'
    instruction = f'". Name {number} lowercase {words} that stand for this {side} in a search index.'
    answer = 'The word is: "' if k == 1 else f'The {number} words are: "'
    if not tokenizer.chat_template:
        return PromptParts(opening, f"{instruction}\n{answer}", f'"{tokenizer.eos_token or ""}')
    before, after, close = _chat(tokenizer, opening, instruction)
    return PromptParts(before, after + answer, f'"{close}{tokenizer.eos_token or ""}')


def _chat(tokenizer: PreTrainedTokenizerBase, opening: str, instruction: str) -> tuple[str, str, str]:
    """(what stands before the text, what stands after it up to the answer, what closes an assistant's turn)."""
    turns = [{"role": "user", "content": f"{opening}{TEXT}{instruction}"}]
    asked = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    answered = str(tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": ANSWER}], tokenize=False))
    before, found, after = asked.partition(TEXT)
    after_answer = tokenizer.tokenize(answered.partition(ANSWER)[2], add_special_tokens=False)
    close = after_answer[0] if after_answer and after_answer[0] in tokenizer.get_added_vocab() else ""
    if not found or ANSWER not in answered:
        raise UserError("the tokenizer's chat template drops or changes the text; give the prompts yourself (--prompts)")
    return before, after, close
