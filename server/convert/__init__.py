"""Between protobuf and the engine's values: the only place of the server that knows both."""
