"""mergekit's YAML files: read and checked, as values of our own. Composing runs them; nothing of mergekit itself is needed.

``nodes`` reads YAML so that every value knows its place; ``models``, ``amounts`` and ``configurations`` say what a file may hold;
``rules`` is the table of mergekit's merge methods and their parameters.
"""
