"""The page that shows a record in a browser: its files, served as they are, and their package.

`inspector --web` serves it, and `kerneld record --html` writes it into one file. docs/view.md describes it.
"""
