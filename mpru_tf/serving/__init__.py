"""The embedded model server: TensorFlow Serving's protocol, semantics and status codes, without its binary.

It is the stand-in for ``tensorflow_model_server`` where there is no Docker: development, tests, the quick start.
Production uses the real one. Its public API documentation and behaviour are the specification of everything here.

===================  ===================================================================================================
``server``           ModelServer: puts the rooms below together, starts and stops them
``options``, ``command_line``    every flag once, and how it is written
``commands``         ``mpru-tf serve``
``config``, ``messages``         the text protos of the real server
``catalogue``        the list of models, and its replacement
``source``           which version directories lie in the base path, polled; the version policy
``repeating``        what both pollers (of base paths, of the configuration file) do it with
``swap_policy``      which version to load or unload next (availability preserving), as a pure function
``manager``          the life of each version, START to END; hands out servables and counts who uses them
``servable``         one loaded version, ready to answer
``loading``          load, then warm-up
``batching``         requests joined and split again
``predict``          what Predict checks and answers, for gRPC and REST alike
``inference``        what Classify, Regress and MultiInference check and answer
``tensors``          TensorProto to NumPy and back
``prediction_service``, ``model_service``, ``grpc_server``      the gRPC side
``json_tensors``, ``json_examples``, ``rest``                   the REST side
``metrics``, ``health``           what monitors ask
``status``           the one exception that carries a status code, and its HTTP twin
===================  ===================================================================================================

Import :class:`mpru_tf.serving.server.ModelServer` from its module: it needs TensorFlow and gRPC, this page does not.
"""
