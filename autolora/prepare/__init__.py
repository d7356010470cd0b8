"""What a base model, an encoder or a tagger says of a dataset before training; and class pictures for it."""
