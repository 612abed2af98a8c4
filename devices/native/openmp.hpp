// Our teams in place of OpenMP's, for one library.
#pragma once

namespace haversack {

// Have the OpenMP regions of the loaded library that `function` belongs to computed by the calling
// thread's `Team` while that works. The library's own code stays as it is: only the addresses of the five functions that it
// calls of OpenMP's are replaced, in this process. Returns how many were; 0 where it calls others
// than those, or this system is not known, and OpenMP goes on as before.
int take_over_openmp(void *function);

}  // namespace haversack
