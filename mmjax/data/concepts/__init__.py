"""Tables of related concepts, from a local WordNet and tables of translations; for the transform ``culture_mixup``."""
