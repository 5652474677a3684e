"""Models of Hugging Face transformers by name: built from a configuration, or read from a local folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from unlearn.errors import did_you_mean
from unlearn.extras import extra_module

Head = Literal["sequence-classification", "causal-lm"]
_CLASSES = {"sequence-classification": "AutoModelForSequenceClassification", "causal-lm": "AutoModelForCausalLM"}


def transformers_model(
    head: Head,
    path: str | None = None,
    config: Mapping[str, Any] | None = None,
    classes: int | None = None,
    pretrained: bool = True,
    lora: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a model of transformers as it is there; nothing is ever downloaded.

    Where a weight is not in the folder, such as that of a new head, it is drawn afresh. The model's ``rebuild`` builds
    it again from the same place, so that a retrain starts where training started.

    Args:
        head: ``sequence-classification`` or ``causal-lm``.
        path: folder that ``save_pretrained`` wrote; of a name on the Hub make a copy first.
        config: in the place of a folder: ``model_type`` and the options of its configuration, for random weights.
        classes: outputs of a classifier.
        pretrained: read the weights in the folder, and not its configuration alone.
        lora: options of ``peft.LoraConfig``, such as ``{"r": 8}``: adapters are trained (and a new head), the rest is
            frozen, so that curvature, scores and edits are of the adapters alone.

    Raises:
        MissingExtraError: transformers, or for ``lora`` peft, is not installed.
        ValueError: neither or both of ``path`` and ``config``, a folder that is not there, an unknown model type or
            option.

    >>> tiny = {"model_type": "gpt2", "vocab_size": 9, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 2}
    >>> type(transformers_model("causal-lm", config={**tiny, "bos_token_id": 0, "eos_token_id": 0})).__name__
    'GPT2LMHeadModel'
    """
    transformers = extra_module("transformers", "transformers", f"model 'hf-{head}' is one of transformers")
    if (path is None) == (config is None):
        raise ValueError("state one of path (a folder that save_pretrained wrote) and config (model_type and options)")
    if head == "causal-lm" and classes is not None:
        raise ValueError("classes belongs to 'hf-sequence-classification'; a causal model has its vocabulary")
    about = {} if classes is None else {"num_labels": classes}
    auto = getattr(transformers, _CLASSES[head])
    if config is not None:
        model = auto.from_config(_configuration(transformers, dict(config), about))
    else:
        folder = _folder(str(path))
        if pretrained:
            with _quiet(transformers.utils.logging):
                model = auto.from_pretrained(folder, local_files_only=True, ignore_mismatched_sizes=True, **about)
            model = model.float()
        else:
            stated = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **about)
            model = auto.from_config(stated)
    # batches are padded, and a classifier of a causal kind finds the last token by its padding
    if model.config.pad_token_id is None and head == "sequence-classification":
        raise ValueError(
            f"the configuration of {type(model).__name__} has no pad_token_id, which its classifier needs for rows of "
            "several lengths; state it in config, or in the folder's config.json, as the tokenizer has it"
        )
    model.config.use_cache = False  # keys and values are kept for generation alone
    if lora is not None:
        model = _with_adapters(model, head, lora)
    model.rebuild = partial(transformers_model, head, path, config, classes, pretrained, lora)
    found: nn.Module = model
    return found


def _with_adapters(model: nn.Module, head: Head, options: Mapping[str, Any]) -> nn.Module:
    peft = extra_module("peft", "lora", "adapters are peft's")
    kind = {"sequence-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}[head]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft sets fan_in_fan_out of Conv1D by itself, and says so
        found: nn.Module = peft.get_peft_model(model, peft.LoraConfig(task_type=kind, **options))
    return found


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Leave out the report on a head that is drawn afresh, which is what was asked for."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _configuration(transformers: Any, config: dict[str, Any], about: dict[str, Any]) -> Any:
    kind = config.pop("model_type", None)
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if kind is None:
        raise ValueError("config has no model_type, such as model_type = 'bert'")
    if kind not in known:
        raise ValueError(f"unknown model_type {kind!r}; {did_you_mean(kind, known)[:200]}")
    made = transformers.AutoConfig.for_model(kind, **about)
    taken = {*vars(made), *made.attribute_map}
    for option in config:
        if option not in taken:
            raise ValueError(f"model_type {kind!r} has no option {option!r}; {did_you_mean(option, taken)[:200]}")
    return transformers.AutoConfig.for_model(kind, **config, **about)


def _folder(path: str) -> str:
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{path!r} is no folder with a config.json; nothing is downloaded, so where there is network make a copy "
            f"by AutoModel.from_pretrained(NAME).save_pretrained({path!r})"
        )
    return str(folder)
