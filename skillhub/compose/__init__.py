"""Composing packs: onto a model in memory (``grafts``) or into a checkpoint on disk (``fusion``)."""
