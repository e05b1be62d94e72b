"""The mistakes: one module for each part of the assignment. Their names and words are in kerneld/bugs/catalogue.py."""
