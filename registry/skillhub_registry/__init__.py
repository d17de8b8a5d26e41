"""A registry of one's own: speaks the Hugging Face Hub's protocol, stores everything in one folder."""
