"""The virtual fabric: topology, routing, queues, congestion control, jobs, faults, and the ground truth."""
