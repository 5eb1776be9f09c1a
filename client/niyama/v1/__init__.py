"""The messages and stubs that protoc generates of `niyama/v1/inference.proto`: `make proto`."""
