"""Texts become tokens of one length."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unlearn.errors import InputError
from unlearn.extras import extra_module


class TokenisedTexts:
    """Texts, tokenised each time they are asked for; what the model gets are keyword arguments.

    Args:
        texts: one a row.
        ids: row ids, for messages.
        tokenizer: name on the Hub or folder of a tokenizer of transformers.
        length: tokens of every row: longer texts are cut, shorter ones padded.
        name: of the data, for messages.

    Raises:
        InputError: a row that is no text, or a tokenizer that can not be loaded or can not pad.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, texts: Sequence[str], ids: Sequence[str], tokenizer: str, length: int, name: str) -> None:
        for row, text in zip(ids, texts, strict=True):
            if not isinstance(text, str):
                raise InputError(f"the text of row {row!r} of {name} is {type(text).__name__}; give a text a row")
        transformers = extra_module("transformers", "hf", "texts are cut by transformers")
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise InputError(
                f"tokenizer {tokenizer!r} can not be loaded ({str(error).splitlines()[0]}); give the folder that its "
                "save_pretrained wrote, or a name on the Hub with network"
            ) from error
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise InputError(f"tokenizer {tokenizer!r} has no padding token; set its pad_token and save it again")
            self.tokenizer.pad_token = self.tokenizer.eos_token  # GPT-2 has none; the attention mask hides it
        self.texts = texts
        self.length = length

    def inputs(self, positions: Tensor) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and what else the tokenizer makes, shape (rows, length)."""
        found = self.tokenizer(
            [self.texts[i] for i in positions.tolist()],
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        return dict(found)

    def words(self, positions: Tensor) -> list[str]:
        """Return the texts themselves."""
        return [self.texts[i] for i in positions.tolist()]
