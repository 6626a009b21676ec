"""FX passes from a trained network to a graph of plain modules, one concept a file."""
