"""The view full screen in a terminal (`inspector --live`): the model of a record, drawn with letters and half blocks.

What is drawn is made by pure functions of the machine (`drawing`, `walk`); only `app` knows Textual.
"""
