"""The view in a browser: a server on loopback. The page that it serves is in `shared.page`.

The server knows chunks of a record and no picture; the page has the model and draws. docs/view.md says how they talk.
"""
