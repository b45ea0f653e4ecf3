"""Tests of hf_gmar."""
