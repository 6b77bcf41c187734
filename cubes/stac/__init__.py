"""Catalogues as sources: searches, static files, items as tables, and lazy arrays of them."""
