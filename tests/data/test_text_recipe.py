"""The shipped recipe on texts: checked and run on a small data set, tokenizer and model written here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlearn.data import Rows
from unlearn.models import build_model
from unlearn.pipeline import Run, dry_run, run_stages
from unlearn.recipe import load_recipe, parse_recipe

datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TOPICS = ["world", "sports", "business", "science"]
WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{word: k for k, word in enumerate([*TOPICS, "news"], 4)}}


def texts(count: int) -> dict[str, list[object]]:
    """Rows of several lengths that name their topic."""
    return {
        "text": [" ".join([TOPICS[k % 4]] * (1 + k % 3) + ["news"] * (k % 5)) for k in range(count)],
        "label": [k % 4 for k in range(count)],
    }


def write_folders(root: Path) -> None:
    """Write what the recipe reads: data/ag_news and models/distilbert-base-uncased, small."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=TOPICS)})
    parts = {"train": 48, "test": 16}
    datasets.DatasetDict(
        {part: datasets.Dataset.from_dict(texts(count), features=features) for part, count in parts.items()}
    ).save_to_disk(root / "data" / "ag_news")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = root / "models" / "distilbert-base-uncased"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(folder)
    config = transformers.DistilBertConfig(
        vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=128
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.DistilBertModel(config).save_pretrained(folder)


@pytest.fixture
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    write_folders(tmp_path)
    monkeypatch.chdir(tmp_path)


def everything(rows: Rows) -> dict[str, torch.Tensor]:
    inputs, _ = rows.batch(torch.arange(len(rows)))
    assert isinstance(inputs, dict)
    return inputs


@pytest.mark.usefixtures("_folders")
def test_a_dry_run_finds_data_tokenizer_and_model(tmp_path: Path) -> None:
    run = Run.planned(tmp_path / "run", load_recipe("text-classification"))
    found = dry_run(run)
    assert found.problems == ()
    assert (found.rows, found.test_rows, run.data.classes) == (48, 16, 4)
    assert found.plan is not None
    assert not found.plan.uncovered
    inputs = everything(run.data)
    assert inputs["input_ids"].shape == (48, 128)
    assert inputs["input_ids"][0, :4].tolist() == [2, 4, 3, 0]
    assert inputs["attention_mask"].sum(1)[:5].tolist() == [3, 5, 7, 6, 8]


def test_without_its_folders_it_says_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, model = dry_run(Run.planned(tmp_path / "run", load_recipe("text-classification"))).problems
    assert "folder './data/ag_news' is not there" in data  # a bare name would be looked for on the Hub
    assert "save_to_disk('./data/ag_news')" in data
    assert "nothing is downloaded" in model


def test_the_comment_counts_the_weights() -> None:
    text = load_recipe("text-classification").text
    with torch.device("meta"):
        options = {"model_type": "distilbert", "pad_token_id": 0}
        model = build_model("hf-sequence-classification", config=options, classes=4)
    assert f"{sum(p.numel() for p in model.parameters()):,} weights" in text


@pytest.mark.usefixtures("_folders")
def test_a_small_run_goes_from_pretrained_weights_to_a_report(tmp_path: Path) -> None:
    text = load_recipe("text-classification").text
    for key, tiny in (
        ("length = 128", "length = 10"),
        ("lr = 3e-5", "lr = 1e-2"),
        ("batch_size = 32", "batch_size = 8"),
        ("references = 3", "references = 2"),
        ('beside = ["loss"]', 'beside = ["loss", "self-influence"]\ncount = 4'),
    ):
        assert key in text
        text = text.replace(key, tiny)
    run = Run.create(tmp_path / "run", parse_recipe(text))
    run_stages(run)
    page = (run.folder / "report.html").read_text()
    assert any(f"{topic} {topic}" in page for topic in TOPICS)  # rows are shown as texts
    start = run.original[1].snapshot(0).weights["distilbert.embeddings.word_embeddings.weight"]
    stored = transformers.AutoModel.from_pretrained("models/distilbert-base-uncased")
    assert torch.equal(start, stored.embeddings.word_embeddings.weight)
