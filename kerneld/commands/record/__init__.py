"""`kerneld record`: a record of the machine, as a file or as a page. docs/view.md describes both."""
