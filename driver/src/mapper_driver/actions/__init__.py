"""What OpenNebula asks a node to do. One module for each action; :mod:`mapper_driver.main` runs them."""
