"""The command ``mapper-cli``: what people and scripts type.

Nothing is imported before it is needed: a short command is mostly the start of Python and its imports.
"""
