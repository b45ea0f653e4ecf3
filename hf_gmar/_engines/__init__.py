"""How attention and its gradient are got."""
