"""The HTTP door: tus 1.0, the IETF's resumable uploads, and whole files, at the address of the WebSocket."""
