"""The embedded model server: TensorFlow Serving's protocol, semantics and status codes, without its binary.

It is the stand-in for ``tensorflow_model_server`` where there is no Docker: development, tests, the quick start.
Production uses the real one. Its public API documentation and behaviour are the specification of everything here.

===================  ===================================================================================================
``server``           ModelServer: puts the rooms below together, starts and stops them
``source``           which version directories lie in the base path, polled; the version policy
``swap_policy``      which version to load or unload next (availability preserving), as a pure function
``manager``          the life of each version, START to END; hands out servables and counts who uses them
``servable``         one loaded version, ready to answer; warm-up belongs into its loading
``predict``          what Predict checks and answers, for gRPC and REST alike
``tensors``          TensorProto to NumPy and back
``prediction_service``, ``model_service``, ``grpc_server``      the gRPC side
``json_tensors``, ``rest``                                      the REST side
``status``           the one exception that carries a status code, and its HTTP twin
===================  ===================================================================================================

Import :class:`mpru_tf.serving.server.ModelServer` from its module: it needs TensorFlow and gRPC, this page does not.
"""
