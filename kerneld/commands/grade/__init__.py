"""`kerneld grade`: the user programs of the assignment, each submission in a cell of its own. Imports no kernel.

`cell` is what runs beside the programs of a submission, behind walls; `report` is what people and other programs read.
"""
