"""The service of vLLM's engines, by which the gateway SMG uses this server (extra `gateway`).

The messages are those of the package smg-grpc-proto, and nobody else imports it.
"""
