"""Where the facts that decisions are made from come from, and how fresh they are."""
