"""Bytes by key, in a local folder or an S3 bucket, behind one interface."""

from backend.storage.store import Blob, BlobNotFound, Storage, StorageUnavailable, file_digest, open_storage

__all__ = ["Blob", "BlobNotFound", "Storage", "StorageUnavailable", "file_digest", "open_storage"]
