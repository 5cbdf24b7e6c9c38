"""The fixture that all tests of a real server start from."""

from tritonserver import triton_environment

__all__ = ["triton_environment"]
