//! Fixtures: running servers, clients, the demo model.
