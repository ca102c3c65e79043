"""Operating a server, ``tensorflow_model_server`` or ``mpru-tf serve``: wait, label, roll out and back, retire, audit.

==================  ====================================================================================================
``client``          a server as its public gRPC interface shows it: states, labels, new configuration, answers
``wire``            the few messages of ModelService, without TensorFlow: a readiness probe must not import it
``waiting``         until *that* version is AVAILABLE
``configuration``   a ModelServerConfig in a file: edited in place, comments kept, sent, then written
``labelling``       labels of versions, in the server and in its configuration file
``remembering``     which version in a base path forgets what, by its manifest
``sampling``        requests to ask two versions the same
``comparing``       the answers of a new version against what the filter makes of the old one's
``rollout``         publish, wait, warm check, canary label, compare, stable label
``rollback``        back to an older version, unless it would answer a forgotten class again
``retire``          versions that answer forgotten classes leave the base path
``audit``           which version answers which forgotten class; for a scheduled job
``commands``        all of it on the command line
==================  ====================================================================================================
"""
