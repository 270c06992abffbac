"""What collectors would see of the virtual fabric: live on the wire, or as recordings."""
