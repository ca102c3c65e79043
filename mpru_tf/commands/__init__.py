"""The commands for making a model forget; those for unlearning, evaluating, operating and serving lie beside these.

===============  ==============================================================================
``inspect``      what a SavedModel answers, and where its class scores are
``means``        class means, from examples
``checks``       ``verify`` and ``history``
``forget``       the main job
``convert``      tree models
``quickstart``   the whole thing
``options``      what several of them take
``left_behind``  what is told after forgetting
===============  ==============================================================================

Each module has a ``register`` that puts its commands on the command line. None imports TensorFlow before it runs.
"""
