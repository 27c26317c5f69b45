"""What a network has to beat, computed on its own splits: constants, linear models of coarse features, a carried score.

A control is a case table like the model's, so that metrics, intervals and paired differences come from the same code.
It depends on manifest, split and preprocessing alone, never on a trained model.
"""
