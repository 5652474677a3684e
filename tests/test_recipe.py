"""Recipes: what is refused, and in which words."""

import pytest

from unlearn.errors import RecipeError
from unlearn.recipe import load_recipe, parse_recipe

GOOD = '[data]\nsource = "digits"\n[model]\nname = "mlp"\n'

BAD = {
    "unknown key": ('name = "x"\n' + GOOD + "[train]\nepoch = 3\n", r"'train.epoch'; did you mean 'epochs'"),
    "unknown section": ('name = "x"\n' + GOOD + "[verfy]\n", r"'verfy'; did you mean 'verify'"),
    "unknown noise key": (
        'name = "x"\n[data]\nsource = "digits"\nnoise = { rate = 0.1, sed = 1 }\n[model]\nname = "mlp"\n',
        "'data.noise.sed'",
    ),
    "bad value": ('name = "x"\n' + GOOD + "[train]\nlr = -1\n", r"'train.lr' is -1"),
    "bad choice": ('name = "x"\n' + GOOD + '[repair]\naction = "erase"\n', r"'repair.action' is 'erase'"),
    "a class without label": (
        'name = "x"\n' + GOOD + '[repair]\naction = "remove-class"\n',
        "action 'remove-class' needs 'label', and no other",
    ),
    "a label without class": ('name = "x"\n' + GOOD + "[repair]\nlabel = 3\n", "action 'remove-class' needs 'label'"),
    "no decisions": ('name = "x"\n' + GOOD + '[repair]\naction = "decisions"\n', "'decisions' needs 'decisions'"),
    "a decision misspelt": (
        'name = "x"\n'
        + GOOD
        + '[repair]\naction = "decisions"\ndecisions = [{ id = "a", action = "keep", lable = 1 }]\n',
        "'repair.decisions.0.lable'; did you mean 'label'",
    ),
    "an output of no class": (
        'name = "x"\n' + GOOD + "[repair]\ndrop_output = true\n",
        "drop_output cuts the output of a removed class",
    ),
    "an option of data that is not there": (
        'name = "x"\n[data]\nsource = "mnist"\noptions = { rot = "." }\n[model]\nname = "mlp"\n',
        "recipe: data 'mnist' has no option 'rot'; did you mean 'root'",
    ),
    "an option of data that is missing": (
        'name = "x"\n[data]\nsource = "table"\n[model]\nname = "mlp"\n',
        "data 'table' needs the option 'path'",
    ),
    "missing": (GOOD, "'name' is missing"),
    "infinite": ('name = "x"\n' + GOOD + "[repair]\nbudget = inf\n", "'repair.budget' is inf"),
    "NaN or a word": ('name = "x"\n' + GOOD + "[repair]\ndamping = nan\n", "repair.damping"),
    "negative or a word": ('name = "x"\n' + GOOD + "[repair]\ndamping = -1.0\n", "repair.damping"),
    "seed too large": ('name = "x"\n' + GOOD + f"[train]\ntrain_seed = {2**64}\n", "'train.train_seed'"),
    "betas": ('name = "x"\n' + GOOD + "[train]\nbetas = [0.9, 2.0]\n", "'train.betas.1' is 2.0"),
    "pairs that are no classes": (
        'name = "x"\n' + GOOD + '[data.noise]\nkind = "pairs"\nrate = 0.1\npairs = { a = 1 }\n',
        "'data.noise.pairs.a",
    ),
    "pairs without pairs": ('name = "x"\n' + GOOD + '[data.noise]\nkind = "pairs"\nrate = 0.1\n', "needs pairs"),
    "no TOML": ("name = ", "not valid TOML"),
    "internal key": ('name = "x"\ntext = "y"\n' + GOOD, "unknown key 'text'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_refused_in_one_line(case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'mnist5k-relabel'"):
        load_recipe("mnist5k-relable")


def test_a_recipe_file_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match=r"nothing\.toml"):
        load_recipe("nothing.toml")


def test_seeds_are_apart() -> None:
    recipe = load_recipe("mnist5k-relabel")
    assert recipe.data.noise is not None
    assert {"split_seed"} <= set(type(recipe.data).model_fields)
    assert {"noise_seed"} <= set(type(recipe.data.noise).model_fields)
    assert {"train_seed"} <= set(type(recipe.train).model_fields)


BAD_CORRUPTIONS = {
    'kind = "gaussian", rate = 0.1, sed = 1': "'data.corruption.sed'; did you mean 'seed'",
    'kind = "blur", rate = 0.1': "'data.corruption.kind' is 'blur'",
    'kind = "outliers", rate = 1.5': "'data.corruption.rate' is 1.5",
    'kind = "outliers"': "'data.corruption.rate' is missing",
    'kind = "outliers", rate = 0.1, near = "shift"': "kind 'outliers' takes no 'near'; its option is 'other'",
    'kind = "duplicates", rate = 0.1, strength = 0.1': "kind 'duplicates' takes no 'strength'; its option is 'near'",
    'kind = "occlusion", rate = 0.1, other = "digits"': "kind 'occlusion' takes no 'other'; its option is 'strength'",
    'kind = "trigger", rate = 0.1': "kind 'trigger' needs the label that the trigger is to mean",
    'kind = "trigger", rate = 0.1, label = 4, near = "shift"': "its option is 'strength' and 'label'",
    'kind = "gaussian", rate = 0.1, label = 4': "kind 'gaussian' takes no 'label'",
}


@pytest.mark.parametrize("text", BAD_CORRUPTIONS)
def test_a_bad_corruption_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match=BAD_CORRUPTIONS[text]) as caught:
        parse_recipe('name = "x"\n' + GOOD.replace("[model]", f"corruption = {{ {text} }}\n[model]"))
    assert "\n" not in str(caught.value)


def test_a_corruption_has_its_own_seed_and_options() -> None:
    text = 'corruption = { kind = "duplicates", rate = 0.1, seed = 7, near = "shift" }\n[model]'
    section = parse_recipe('name = "x"\n' + GOOD.replace("[model]", text)).data.corruption
    assert section is not None
    assert (section.kind, section.rate, section.seed, section.near) == ("duplicates", 0.1, 7, "shift")
    assert parse_recipe('name = "x"\n' + GOOD).data.corruption is None


BAD_METHODS = {
    'method = "gift"': "'repair.method' is 'gift'",
    'method = "gif"': "edits the final weights; state budget = 0 with it",
    "budget = 0\nratio = 0.1": "select, ratio and steps belong to a method",
    'method = "gif"\nbudget = 0\nratio = 0': "'repair.ratio' is 0",
    'method = "full"\nbudget = 0\nratio = 0.1': "method 'full' moves all weights and takes no ratio or select",
}


@pytest.mark.parametrize("text", BAD_METHODS)
def test_a_bad_method_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match=BAD_METHODS[text]) as caught:
        parse_recipe(f'name = "x"\n{GOOD}\n[repair]\n{text}\n')
    assert "\n" not in str(caught.value)


def test_adams_metric_is_no_damping_of_factors() -> None:
    text = f'name = "x"\n{GOOD}\n[train]\noptimizer = "adam"\n[repair]\nmethod = "gif"\nbudget = 0\n'
    with pytest.raises(RecipeError, match="Adam's damping is a metric"):
        parse_recipe(text)
    assert parse_recipe(text + "damping = 0.1").repair.damping == 0.1
