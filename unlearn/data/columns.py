"""Names of the columns of tables that are shipped inside Python packages."""

from __future__ import annotations

from unlearn.errors import MissingExtraError


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
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise MissingExtraError(
            "this data is shipped with scikit-learn, which is not installed: pip install 'unlearn[demo]'"
        ) from error
    return tuple(str(name) for name in load_breast_cancer().feature_names)
