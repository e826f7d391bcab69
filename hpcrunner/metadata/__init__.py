"""The document that a program builds by printing JSON: fragments to merge (RFC 7386) and patches (RFC 6902)."""
