"""Recipes: one TOML file says everything that a run depends on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unlearn.errors import InputError, RecipeError, did_you_mean
from unlearn.source_options import check_options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

FOLDERS = (Path(__file__).parent.parent / "recipes", Path(__file__).parent / "shipped_recipes")

_Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class NoiseSection(_Section):
    """Label noise put on the training rows; none where the section is missing."""

    kind: Literal["symmetric", "pairs"] = "symmetric"
    rate: float = Field(ge=0, le=1)
    noise_seed: int = 0
    pairs: dict[int, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _pairs_for_pairs(self) -> NoiseSection:
        if (self.kind == "pairs") != bool(self.pairs):
            raise ValueError('kind "pairs" needs pairs, such as pairs = { 4 = 9 }, and kind "symmetric" takes none')
        return self


class CorruptionSection(_Section):
    """What is done to the training rows after label noise; see :mod:`unlearn.data.corruptions`."""

    kind: Literal["gaussian", "occlusion", "permutation", "duplicates", "outliers", "trigger"]
    rate: float = Field(ge=0, le=1)
    seed: int = 0
    strength: float | None = None
    near: Literal["gaussian", "shift"] | None = None
    other: str | None = None
    label: int | None = None

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> CorruptionSection:
        owners = {"duplicates": ("near",), "outliers": ("other",), "trigger": ("strength", "label")}
        own = owners.get(self.kind, ("strength",))
        for option in ("strength", "near", "other", "label"):
            if option not in own and getattr(self, option) is not None:
                raise ValueError(
                    f"kind {self.kind!r} takes no {option!r}; its option is {' and '.join(map(repr, own))}"
                )
        if self.kind == "trigger" and self.label is None:
            raise ValueError("kind 'trigger' needs the label that the trigger is to mean, such as label = 4")
        return self


class DataSection(_Section):
    """Which rows; ``options`` go to the source (a folder, columns, ...; see :mod:`unlearn.source_options`)."""

    source: str
    options: dict[str, Any] = Field(default_factory=dict)
    split_seed: int = 0
    noise: NoiseSection | None = None
    corruption: CorruptionSection | None = None


class ModelSection(_Section):
    """Which architecture; ``options`` go to its factory (inputs, classes, widths, ...)."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class TrainSection(_Section):
    """How the original is trained; see :class:`unlearn.training.TrainSettings`.

    ``snapshot_epochs``: ``every`` epoch, how many snapshots in all (see :func:`unlearn.training.snapshot_epochs` for
    where they are placed), or after which epochs.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-3, ge=0)
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: int = Field(default=10, gt=0)
    step_factor: float = Field(default=0.1, gt=0)
    epochs: int = Field(default=15, gt=0)
    batch_size: int = Field(default=128, gt=0)
    train_seed: int = Field(default=0, ge=0, lt=2**63)
    snapshot_epochs: Literal["every"] | Annotated[int, Field(ge=3)] | list[int] = "every"


DetectorName = Literal[
    "margin-trajectory",
    "loss",
    "self-influence",
    "gif",
    "outlier-gradients",
    "outlier-gradients-l1",
    "outlier-gradients-l2",
    "tracin",
    "out-of-sample",
]


class DetectSection(_Section):
    """Which score decides, which are computed beside it, how many rows are acted on.

    Beside each of these rows, for a review, the most influential rows are written: ``neighbours`` on each side. With
    ``stream_factors`` the curvature stays in the run folder, and one layer of it at a time is in memory.
    """

    method: DetectorName = "margin-trajectory"
    beside: list[DetectorName] = ["self-influence", "gif", "loss"]
    count: int | None = Field(default=None, ge=0)
    neighbours: int = Field(default=4, ge=0)
    stream_factors: bool = False


class Decision(_Section):
    """One line of a decisions file; ``remove-class`` takes a label and no id."""

    id: str = ""
    action: Literal["remove", "relabel", "remove-class", "keep"]
    label: int | float | None = None


class RepairSection(_Section):
    """What is done: with the rows found (``remove``, ``relabel``), to a class, or as the recipe's own decisions say.

    ``true-labels`` gives all rows whose label the recipe itself made wrong their true one: an oracle, for experiments.
    Without a ``method`` :func:`unlearn.repair.apply_changes` chooses one; ``newton`` and ``unrolled`` are its own. The
    others are those of :func:`unlearn.repair.restricted_edit` on Kronecker factors, and edit the final weights.
    """

    action: Literal["remove", "relabel", "remove-class", "decisions", "true-labels"] = "relabel"
    label: int | None = None
    drop_output: bool = False
    decisions: list[Decision] | None = Field(default=None, min_length=1)
    budget: float = Field(default=3.0, ge=0)
    damping: Literal["horizon"] | Annotated[float, Field(ge=0)] = "horizon"
    layers: list[str] | None = Field(default=None, min_length=1)
    method: (
        Literal["newton", "unrolled", "compressed", "descent", "gif", "frozen", "projected", "full", "second-order"]
        | None
    ) = None
    select: Literal["outputs", "gradients"] | None = None
    ratio: float | None = Field(default=None, gt=0, le=1)
    steps: int | None = Field(default=None, ge=1)

    @property
    def whole_weights(self) -> bool:
        """Whether the method is one of :func:`unlearn.repair.apply_changes`."""
        return self.method in (None, "newton", "unrolled", "compressed", "descent")

    @property
    def states_changes(self) -> bool:
        """Whether the recipe itself says what is changed, so that nothing is looked for."""
        return self.action not in ("remove", "relabel")

    @model_validator(mode="after")
    def _what_the_action_needs(self) -> RepairSection:
        for action, key in (("remove-class", "label"), ("decisions", "decisions")):
            if (self.action == action) != (getattr(self, key) is not None):
                raise ValueError(f"action {action!r} needs {key!r}, and no other action takes it")
        if self.drop_output and self.action != "remove-class":
            raise ValueError("drop_output cuts the output of a removed class; it needs action 'remove-class'")
        return self

    @model_validator(mode="after")
    def _layers_without_replay(self) -> RepairSection:
        if self.layers is not None and self.budget > 0:
            raise ValueError("layers edits some layers only, but a replay moves all of them; state budget = 0 with it")
        return self

    @model_validator(mode="after")
    def _options_of_the_method(self) -> RepairSection:
        if self.whole_weights and any(option is not None for option in (self.select, self.ratio, self.steps)):
            raise ValueError('select, ratio and steps belong to a method of their own, such as method = "gif"')
        if not self.whole_weights and self.budget > 0:
            raise ValueError(f"method {self.method!r} edits the final weights; state budget = 0 with it")
        if self.method in ("full", "second-order") and not (self.select is None and self.ratio is None):
            raise ValueError(f"method {self.method!r} moves all weights and takes no ratio or select")
        return self


class VerifySection(_Section):
    """What the edit is held against; with ``shadows`` models its rows are audited for membership too, with 0 not."""

    references: int = Field(default=5, ge=0)
    shadows: int = Field(default=0, ge=0)
    tolerance: float = Field(default=1.5, gt=0)
    verdict_seed: int = 0

    @model_validator(mode="after")
    def _enough_shadows(self) -> VerifySection:
        if 0 < self.shadows < 6:
            raise ValueError("give at least 6 shadows, half of them with the rows, or 0 for no audit")
        return self


class CertifiedSection(_Section):
    """A linear head with certified removals, in place of detect, repair and verify.

    ``weight_decay`` and ``train_seed`` (of the noise) stand under ``train``. ``requests`` are the numbers of rows that
    leave together, in turn, until the budget refuses one or ``most`` have been served, each by so many Newton
    ``steps``; ``request_seed`` draws the rows.
    """

    sigma: float = Field(gt=0)
    epsilon: float = Field(gt=0, le=50)
    delta: float = Field(gt=0, lt=1)
    requests: list[Annotated[int, Field(gt=0)]] = Field(default=[1], min_length=1)
    most: int = Field(default=1000, ge=0)
    steps: int = Field(default=1, gt=0)
    request_seed: int = 0


class LetterSection(_Section):
    """A request in a rehearsal: the day it comes in, and what it asks for."""

    day: int = Field(ge=0)
    ids: list[str] = []
    subjects: list[str] = []
    action: Literal["remove", "relabel"] = "remove"
    label: int | float | None = None
    reason: str | None = None


class RehearsalSection(_Section):
    """Simulated weeks of requests, for trying out and for teaching; see :mod:`unlearn.requests.rehearsal`.

    Rows are dealt by id to so many made-up ``subjects`` of a ``column``. Requests are processed every ``process_every``
    days from ``start`` on. The first held batch gets the first of ``words``, and so on; later ones the last.
    """

    start: date
    letters: list[LetterSection] = Field(min_length=1)
    subjects: int = Field(default=100, ge=1)
    column: str = "customer"
    subject_seed: int = 0
    process_every: int = Field(default=7, ge=1)
    words: list[Literal["approve", "refuse"]] = Field(default=["approve"], min_length=1)


class RequestsSection(_Section):
    """How deletion requests are answered; see :mod:`unlearn.requests`.

    ``release``: ``verified`` releases what passes full verification, ``approved`` nothing without a person's word, and
    ``evidence`` releases provisionally on evidence that needs no retraining, with full verification due after
    ``verify_days``. A verdict of fail or undecided never releases. Past ``drift_limit`` (that of
    :class:`unlearn.repair.Drift` if not given) a retrain answers in the place of an edit. Checkpoints older than
    ``retention_days`` are purged; rows that are left and lie at least ``duplicate_similarity`` (a cosine) from a
    deleted one are reported. ``membership`` models are trained on the rows as they were, for a membership audit beside
    each full verification (0: only where such models are there already). Budget, damping and layers of edits are those
    of ``[repair]``, references and tolerance those of ``[verify]``.
    """

    subjects: str | None = None
    release: Literal["verified", "approved", "evidence"] = "verified"
    due_days: int = Field(default=30, ge=1)
    verify_days: int = Field(default=14, ge=1)
    drift_limit: float | None = Field(default=None, gt=0)
    retention_days: int = Field(default=30, ge=0)
    duplicate_similarity: float = Field(default=0.999, ge=-1, le=1)
    membership: int = Field(default=0, ge=0)
    rehearsal: RehearsalSection | None = None


class Recipe(_Section):
    """A whole run.

    >>> recipe = parse_recipe('name="x"; data.source="digits"; model.name="mlp"'.replace("; ", chr(10)))
    >>> recipe.train.epochs, recipe.data.noise
    (15, None)
    """

    name: str
    description: str = ""
    data: DataSection
    model: ModelSection
    train: TrainSection = TrainSection()
    detect: DetectSection = DetectSection()
    repair: RepairSection = RepairSection()
    verify: VerifySection = VerifySection()
    certified: CertifiedSection | None = None
    requests: RequestsSection = RequestsSection()
    text: str = Field(default="", repr=False)

    @model_validator(mode="after")
    def _number_for_factors(self) -> Recipe:
        if self.repair.method and self.repair.damping == "horizon" and self.train.optimizer == "adam":
            raise ValueError("Adam's damping is a metric and the factors of repair.method take a number; state damping")
        return self

    @model_validator(mode="after")
    def _models_for_membership(self) -> Recipe:
        if self.requests.membership and min(self.requests.membership, self.verify.references) < 3:
            raise ValueError(
                "requests.membership takes at least 3 models, and verify.references at least 3 beside them"
            )
        return self

    @property
    def digest(self) -> str:
        """Sha256 of the recipe's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Return the validated recipe.

    Raises:
        RecipeError: no TOML, an unknown key (with the nearest valid one) or a value that is not allowed.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where} is not valid TOML: {error}") from error
    if "text" in table:
        raise RecipeError(f"{where}: unknown key 'text'; {did_you_mean('text', _keys(Recipe))}")
    try:
        recipe = Recipe(**table, text=text)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first(error, table)}") from error
    if ":" not in recipe.data.source:
        try:
            check_options(recipe.data.source, recipe.data.options)
        except InputError as error:
            raise RecipeError(f"{where}: {error}") from error
    if recipe.certified is not None:
        _check_certified(recipe, where)
    return recipe


def _check_certified(recipe: Recipe, where: str) -> None:
    """Refuse what has no certificate, and settings that a certified head would not heed."""
    if recipe.model.name != "linear":
        raise RecipeError(
            f"{where}: model {recipe.model.name!r} is uncertified: a bound exists for a linear head alone, not for "
            'layers that saw the rows; use the model "linear", or leave out [certified]'
        )
    train = recipe.train.model_copy(update={"weight_decay": 1e-3, "train_seed": 0})
    unused = {"train": train, "detect": recipe.detect, "repair": recipe.repair, "verify": recipe.verify}
    for name, section in unused.items():
        for key, field in type(section).model_fields.items():
            if getattr(section, key) != field.get_default(call_default_factory=True):
                raise RecipeError(
                    f"{where}: '{name}.{key}' has no meaning beside [certified]: a certified head is trained to its "
                    "optimum and edited by its own steps; leave it out"
                )


def _first(error: ValidationError, table: Mapping[str, Any]) -> str:
    """Return the first problem in one line."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in problem["loc"][:-1]:
            inner = {"noise": NoiseSection, "corruption": CorruptionSection, "decisions": Decision}
            section = section if isinstance(part, int) else {**_SECTIONS, **inner}[str(part)]
        return f"unknown key {place!r}; {did_you_mean(str(problem['loc'][-1]), _keys(section))}{more}"
    if problem["type"] == "missing":
        return f"{place!r} is missing{more}"
    return f"{place!r} is {problem['input']!r}: {problem['msg']}{more}"


_SECTIONS = {
    "data": DataSection,
    "model": ModelSection,
    "train": TrainSection,
    "detect": DetectSection,
    "repair": RepairSection,
    "verify": VerifySection,
    "certified": CertifiedSection,
    "requests": RequestsSection,
}


def _keys(section: type[BaseModel]) -> list[str]:
    return [name for name in section.model_fields if name != "text"]


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    found = [path for folder in FOLDERS if folder.is_dir() for path in folder.glob("*.toml")]
    return {path.stem: path for path in sorted(found)}


def load_recipe(name: str) -> Recipe:
    """Load a shipped recipe by name, or a TOML file by path.

    Raises:
        RecipeError: unknown name, unreadable file, or invalid recipe.

    >>> load_recipe("digits-quick").data.source
    'digits'
    """
    path = Path(name) if name.endswith(".toml") else shipped_recipes().get(name)
    if path is None:
        raise RecipeError(f"unknown recipe {name!r}; {did_you_mean(name, shipped_recipes())}; or give a .toml file")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"can not read recipe {str(path)!r}: {error}") from error
    return parse_recipe(text, str(path))
