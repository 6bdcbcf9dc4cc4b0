"""Small worlds in which a method can be understood, measured and proved wrong in seconds.

    worlds    exact denoisers, tilted optima, Riccati values: the oracle of the tests
    prompted  PM, a prompted mixture in 8 dimensions       shapes   pictures with a parser as verifier
    sudoku    4 x 4, every grid known                      digits   8 x 8 digits with a held-out judge
    fork2d    a point, a disc in its way, two ways around
    ring      a bandit with eight good places, and its optimum
    maze      point mazes, and data of five kinds of players

Import the module you need: ``from denoiserl.oracles import sudoku``.
"""
