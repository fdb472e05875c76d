"""Bytes by key, in a local folder or an S3 bucket, behind one interface."""

from backend.storage.store import BlobNotFound, Storage, file_digest, open_storage

__all__ = ["BlobNotFound", "Storage", "file_digest", "open_storage"]
