// Puts our teams in place of OpenMP's threads, for one library.
#pragma once

namespace haversack {

// Have the calling thread's `Team`, while it works, compute the OpenMP regions of the loaded
// library that contains `function`. The library's code does not change: the addresses of the five
// OpenMP functions that it calls are replaced, in this process. Returns how many were replaced. It
// is 0, and OpenMP stays in use, if the library calls other OpenMP functions or this system is not
// known.
int take_over_openmp(void *function);

}  // namespace haversack
