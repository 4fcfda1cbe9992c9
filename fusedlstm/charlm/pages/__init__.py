"""Pages: what a model does with a text, as one HTML file that needs nothing but a browser.

`page` has a model read a text, `summary` says what the reading comes to and `choice` which cells are worth a
look; the template, its style and its scripts lie beside them.
"""

from fusedlstm.charlm.pages.page import Page, look

__all__ = ["Page", "look"]
