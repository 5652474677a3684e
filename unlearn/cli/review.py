"""``unlearn review``."""

from __future__ import annotations

import click

from unlearn.cli.shared import print_wrapped, run_argument


@click.command()
@run_argument
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to listen on; a free one if not given.")
def review(run_folder: str, port: int) -> None:
    """Judge the flagged rows of a run on a page in your browser.

    Keep, remove or relabel each with one key. Every decision is on the disk at
    once, in review.jsonl; the page ends in decisions.csv. The page is served
    to this machine only, at an address with a secret in it. Ctrl-C ends it:
    exit code 0 when decisions.csv holds all decisions, else 130.

    \b
    Example: unlearn review runs/digits
             unlearn repair apply runs/digits runs/digits/decisions.csv
    """
    from unlearn.pipeline import Run
    from unlearn.review import ReviewServer, open_review

    with open_review(Run.open(run_folder)) as shown:
        server = ReviewServer(shown, port)
        counts = shown.review.counts
        click.echo(f"{counts['rows']} rows flagged, {counts['decided']} decided")
        click.echo(f"review: {server.url}\nCtrl-C ends it; what is decided is on the disk.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            counts = shown.review.counts
            click.echo()
            if not shown.review.written:
                print_wrapped(
                    f"{counts['decided']} of {counts['rows']} rows decided, decisions.csv is not written from them: go "
                    f"on with `unlearn review {run_folder}`"
                )
                raise
            print_wrapped(f"decisions.csv is written; next: {shown.command}")
        finally:
            server.server_close()
