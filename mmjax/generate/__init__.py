"""Data recipes: training data that other models make or choose, record by record."""
