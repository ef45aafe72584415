"""Recovery: connections that are lost, or whose receive threads do not run, are reconnected."""
