"""Does it forget? How near a filtered model is to one that never saw the classes, and whether an attacker can tell.

==============  =======================================================================================
module          what it answers
==============  =======================================================================================
metrics         how far two models' answers are apart; how right and how honest one model's answers are
attacks         what an attacker who sees only answers can tell: membership, and the forgotten class
baselines       what the other ways of forgetting would have answered
weights         what whoever holds the file can do: learn the class again, find it in the activations
asking          answers of versions, in a C++ Session, or of a file
evaluate        all of it about one forgotten version, as one JSON document; judge and limits are its parts
report          that document as one page; figures and style are its parts
commands        ``mpru-tf evaluate``
==============  =======================================================================================

Answers are float64 probabilities ``[N, n]``; only ``weights`` looks at weights. Import the modules themselves.
"""
