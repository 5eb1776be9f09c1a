"""Which gRPC services Ray's proxy serves."""

from __future__ import annotations

from niyama.v1 import inference_pb2

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"]

# Whether the server streams, by the path of each RPC.
RPCS = {
    f"/{_SERVICE.full_name}/{method.name}": method.server_streaming for method in _SERVICE.methods
}
RPCS["/grpc.health.v1.Health/Check"] = False  # not Watch: it would hold up a replica that ends
METHODS = frozenset(path.rpartition("/")[2] for path in RPCS)
