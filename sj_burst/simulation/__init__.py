"""Running a spiking network, and counting what it spends."""
