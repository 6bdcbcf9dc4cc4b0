"""Recipes: one published system a file. ``improve`` is the method, ``train`` the experiment."""
