"""YouTube videos: their addresses, captions and audio."""
