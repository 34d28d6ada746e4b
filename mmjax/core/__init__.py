"""What every other room stands on: batches and states, configuration, plug-ins, random keys, geometry."""
