"""A record of the machine: the file, and the model that rebuilds the machine from it at any moment.

docs/view.md describes the format. Nothing here imports the kernel, numpy, or anything of a screen. Who shows a record
(`inspector`) and who writes one (`kerneld record`) share this package.
"""
