"""Where files lie and how they are read: local disks and object stores, open files, cached indexes."""
