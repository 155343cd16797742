"""Numbers inside tensors: storage formats, the edit itself, and the statistics of a change, one block of rows at a time."""
