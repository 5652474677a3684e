"""The command line. Commands parse, call and print; torch is imported when one of them runs."""

from unlearn.cli.main import main

__all__ = ["main"]
