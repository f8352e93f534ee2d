"""What is rented from AWS: the network, a cluster, its head node, and what it costs by the hour."""
