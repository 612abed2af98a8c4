"""Facts and calls of the operating system. `host` is the module of the system that this process
runs on. Each such module has the same functions:

    memory_status()       (most bytes ever resident, anonymous bytes, other resident bytes) of this
                          process; None where not known
    forget_peak()         has the kernel count the first of these anew, where it can
    ram(root)             (total bytes, available bytes, source) of the machine; None: not known
    allowed_cores()       how many cores this process may run on; None where not known
    memory_limits(root)   what control groups, or the job object, limit this process to
    reserve(num_bytes)    (address, owner): addresses without memory, which go with the last
                          reference to the owner. Raises OSError
    commit(address, num_bytes)          makes whole pages of it usable, filled with zeros; True if
                                        they are huge ones. Raises OSError
    decommit(address, num_bytes)        gives whole pages of it back; the addresses stay
    resident_bytes(address, num_bytes)  how much of whole pages is in memory; 0 where not known
    give_back_freed_memory()  gives what was freed back to the system, from all of the C library's
                              heap, which keeps it otherwise: 60 MiB after the vocabulary of 262,144
                              tokens was read and freed. Does nothing where that is not known
    keep_freed_memory()   keeps it for the next allocation instead, for programs that free and take
                          large arrays all the time (without it a training step took 1.4 times as
                          long); False where the heap stays as it is
    open_direct(path)     (file whose reads go past the page cache or None, why or why not)
    open_plain(path)      a file for reads at random places
    read_at(file, view, offset)         bytes of one read
    OPEN_FLAGS            what `os.open` needs besides for a file of bytes that children do not get
    read_bytes(descriptor, num_bytes, offset)   the same for a file opened by `os.open`
    write_at(descriptor, data, offset)          bytes of one write
    most_open_files()     how many files this process may have open at once
    disk_bytes_of(path)   the disk that a file takes, without its holes
    lock(descriptor, wait)              locks an open file against other processes until it is
                                        closed; whether it is locked, which `wait` waits for
"""

import sys

from haversack.devices.errors import HaversackError

if sys.platform == "linux":
    from haversack.devices.system import linux as host
elif sys.platform == "darwin":
    from haversack.devices.system import darwin as host
elif sys.platform == "win32":
    from haversack.devices.system import windows as host
else:
    raise HaversackError(f"haversack runs on Linux, macOS and Windows, not on {sys.platform}")

__all__ = ["host"]
