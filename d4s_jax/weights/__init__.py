"""Published weights in and out: a table of names for each model, and one strict converter."""
