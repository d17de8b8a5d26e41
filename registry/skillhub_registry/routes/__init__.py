"""What the registry answers, one module a group of routes; ``table.py`` lists them all."""
