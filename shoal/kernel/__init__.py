"""What the kernel says of this machine, where more than one layer asks: control groups, processes, whose a folder is."""
