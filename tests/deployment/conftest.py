"""Fixtures for tests of exported and shared models."""

from tests.deployment.trained_models import trained

__all__ = ["trained"]
