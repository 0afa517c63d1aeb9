"""The networks. None of them renders."""
