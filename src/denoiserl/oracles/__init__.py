"""Small worlds with known answers, in which a method can be tested in seconds.

    worlds    exact denoisers, tilted optima, Riccati values: the reference of the tests
    prompted  PM, a prompted mixture in 8 dimensions
    sudoku    4 x 4 sudokus, with all 288 grids

Import the module you need: ``from denoiserl.oracles import sudoku``.
"""
