"""Links made by the kernel: namespaces, token bucket filters, and a process that holds them."""
