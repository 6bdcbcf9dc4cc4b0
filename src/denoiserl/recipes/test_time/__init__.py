"""Test time: choose among a policy's proposals, without changing its weights."""
