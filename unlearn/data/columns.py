"""Names of the columns of tables that are shipped inside Python packages."""

from __future__ import annotations

from unlearn.extras import extra_module

SHIPPED_WITH_SKLEARN = "this data is shipped with scikit-learn"


def column_names(source: str) -> tuple[str, ...] | None:
    """Return the names of a source's columns, in the order of its inputs; None where its inputs have no names.

    Args:
        source: name of a data set, as in :func:`unlearn.load_data`.

    Raises:
        MissingExtraError: the package that ships the data is not installed.

    >>> column_names("breast-cancer")[:2], column_names("mnist5k")
    (('mean radius', 'mean texture'), None)
    """
    if source != "breast-cancer":
        return None
    datasets = extra_module("sklearn.datasets", "demo", SHIPPED_WITH_SKLEARN)
    return tuple(str(name) for name in datasets.load_breast_cancer().feature_names)
