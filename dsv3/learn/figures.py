"""Figures in a notebook: a picture, and under it the line that says what it shows."""

from dsv3.learn.prose import verbatim
from dsv3.viz import Figure
from dsv3.viz.labels import tr
from dsv3.viz.theme import png


def show(figure: Figure, description: str) -> None:
    """Show ``figure`` with ``description`` as its alternative text and, for every reader, as a line below.

    A picture that is finished, without a kernel behind it: it is there on a code host too.
    """
    from IPython.display import Image, Markdown, display

    display(Image(png(figure, description=description), alt=description))
    display(Markdown(f"**{tr('Figure.')}** {verbatim(description)}"))
