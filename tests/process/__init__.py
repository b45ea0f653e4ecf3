"""Tests that need an interpreter of their own."""
