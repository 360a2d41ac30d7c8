"""Tasks whose errors, values and ways to end are unusual, and a world of one worker that has them."""
