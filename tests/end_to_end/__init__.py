"""Real workers, killed and stopped and starved, and programs as users write them.

Start at `harness.py`: what a test can start, kill and look at. Tests wait for what they need, never for time.
"""
