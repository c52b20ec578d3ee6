"""Large payloads, kept outside the store: in a directory that all machines share, or in a service that speaks S3.

Only bytes under names live here; what they mean, and when they may go, is `ferryman.payload`'s to know. Start with
`port.py`.
"""
