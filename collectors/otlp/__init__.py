"""OTLP metrics over gRPC: receiver and decoder."""
