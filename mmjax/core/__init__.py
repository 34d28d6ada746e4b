"""What all other packages build on: batches, training state, configuration, plug-ins, random keys, geometry."""
