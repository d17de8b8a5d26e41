"""Pages for people: templates, a stylesheet, and what is worked out to fill them."""
