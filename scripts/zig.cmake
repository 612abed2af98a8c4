# Compiles for another system with the package ziglang: HAVERSACK_TARGET is zig's name of the system,
# as x86_64-windows-gnu, HAVERSACK_ZIG the package's program.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES HAVERSACK_TARGET HAVERSACK_ZIG)
if(HAVERSACK_TARGET MATCHES "windows")
  set(CMAKE_SYSTEM_NAME Windows)
elseif(HAVERSACK_TARGET MATCHES "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "${HAVERSACK_TARGET}")
set(CMAKE_CXX_COMPILER "${HAVERSACK_ZIG};c++;-target;${HAVERSACK_TARGET}")
set(CMAKE_RC_COMPILER "${HAVERSACK_ZIG}")  # asked for on Windows, and not used
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_OSX_DEPLOYMENT_TARGET "")
