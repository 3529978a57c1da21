"""Losses and decoders of sequences: connectionist temporal classification and conditional random fields."""
