# Compiles with the package ziglang, here or for another system: HAVERSACK_TARGET is zig's name of the
# system, as x86_64-windows-gnu, HAVERSACK_ZIG the package's program.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES HAVERSACK_TARGET HAVERSACK_ZIG)
if(HAVERSACK_TARGET MATCHES "windows")
  set(CMAKE_SYSTEM_NAME Windows)
elseif(HAVERSACK_TARGET MATCHES "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
else()
  set(CMAKE_SYSTEM_NAME Linux)
  set(HAVERSACK_IO_URING TRUE)
endif()
# Whoever installs haversack without a compiler waits for this. What CMake would find out by compiling
# and linking programs, for which zig first makes libraries, is known.
set(CMAKE_CXX_COMPILER_FORCED TRUE)
set(CMAKE_CXX_COMPILER_ID_RUN TRUE)
set(CMAKE_CXX_COMPILER_ID Clang)
set(CMAKE_CXX_COMPILER_VERSION 22.1.8)
set(CMAKE_CXX_COMPILER_FRONTEND_VARIANT GNU)
set(CMAKE_CXX_STANDARD_COMPUTED_DEFAULT 17)
set(CMAKE_CXX_EXTENSIONS_COMPUTED_DEFAULT ON)
set(CMAKE_HAVE_LIBC_PTHREAD TRUE)
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "${HAVERSACK_TARGET}")
set(CMAKE_CXX_COMPILER "${HAVERSACK_ZIG};c++;-target;${HAVERSACK_TARGET}")
set(CMAKE_RC_COMPILER "${HAVERSACK_ZIG}")  # asked for on Windows, and not used
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_OSX_DEPLOYMENT_TARGET "")
