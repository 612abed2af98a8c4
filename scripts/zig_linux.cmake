# llama.cpp's exceptions pass through our library and ours through llama.cpp, so both must have them
# from the same libraries: libstdc++ and libgcc_s of the system that it runs on. The package ziglang
# has neither, nor their headers, and links another library, libc++, into what it builds. Therefore:
# libc++'s containers and threads are compiled from the package's sources, made for libstdc++'s
# exceptions, and two empty libraries with the system's names stand in for it while we link.

get_filename_component(libcxx "${HAVERSACK_ZIG}" DIRECTORY)
set(libcxx "${libcxx}/lib/libcxx/src")
add_library(libcxx OBJECT
  # One unit. The first defines again what must not be declared before.
  ${libcxx}/memory.cpp
  ${libcxx}/algorithm.cpp ${libcxx}/chrono.cpp ${libcxx}/condition_variable.cpp
  ${libcxx}/functional.cpp ${libcxx}/future.cpp ${libcxx}/hash.cpp ${libcxx}/mutex.cpp
  ${libcxx}/stdexcept.cpp ${libcxx}/string.cpp ${libcxx}/system_error.cpp ${libcxx}/thread.cpp
  # Units of their own, because they say first how a header shall be read.
  ${libcxx}/condition_variable_destructor.cpp ${libcxx}/error_category.cpp
  scripts/zig_libstdcxx.cpp)
set_source_files_properties(
  ${libcxx}/condition_variable_destructor.cpp ${libcxx}/error_category.cpp
  scripts/zig_libstdcxx.cpp PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
target_include_directories(libcxx PRIVATE ${libcxx})
target_compile_definitions(libcxx PRIVATE LIBSTDCXX _LIBCPP_BUILDING_LIBRARY)
target_compile_options(libcxx PRIVATE
  -w -O2 -fvisibility-inlines-hidden -ffunction-sections -fdata-sections)
set_target_properties(libcxx PROPERTIES
  CXX_STANDARD 23 CXX_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON
  UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)

# NAME VERSION SYMBOL...: makes the target NAME, an empty library with these symbols. Where our code
# begins to use another one, the linker names it: add it to the list.
function(add_stand_in name version)
  set(names "")
  foreach(symbol ${ARGN})
    string(APPEND names "asm(\".globl ${symbol}\\n${symbol}:\");\n")
  endforeach()
  file(WRITE ${CMAKE_BINARY_DIR}/stand_in/${name}.cpp "${names}")
  add_library(${name} SHARED ${CMAKE_BINARY_DIR}/stand_in/${name}.cpp)
  target_link_options(${name} PRIVATE -nostdlib++)
  set_target_properties(${name} PROPERTIES
    OUTPUT_NAME ${name} SOVERSION ${version} LIBRARY_OUTPUT_DIRECTORY stand_in)
endfunction()

add_stand_in(gcc_s 1
  _Unwind_Backtrace _Unwind_GetCFA _Unwind_GetIP _Unwind_Resume)
add_stand_in(stdc++ 6
  # of exceptions
  __cxa_allocate_exception __cxa_begin_catch __cxa_current_exception_type __cxa_end_catch
  __cxa_free_exception __cxa_rethrow __cxa_throw __gxx_personality_v0
  _ZSt13set_terminatePFvvE _ZSt9terminatev _ZTIN10__cxxabiv115__forced_unwindE
  _ZTVN10__cxxabiv117__class_type_infoE _ZTVN10__cxxabiv120__si_class_type_infoE
  _ZTVN10__cxxabiv121__vmi_class_type_infoE
  # of other things that a compiler asks for
  __cxa_guard_abort __cxa_guard_acquire __cxa_guard_release __cxa_pure_virtual __cxa_thread_atexit
  _ZdaPv _ZdlPv _ZdlPvm _ZdlPvmSt11align_val_t _Znam _Znwm _ZnwmRKSt9nothrow_t _ZnwmSt11align_val_t
  _ZSt7nothrow
  # types that are thrown, and those that they are made from
  _ZNKSt13runtime_error4whatEv
  _ZNSt11logic_errorD2Ev _ZNSt12length_errorD1Ev _ZNSt12out_of_rangeD1Ev _ZNSt13runtime_errorD1Ev
  _ZNSt13runtime_errorD2Ev _ZNSt14overflow_errorD1Ev _ZNSt16invalid_argumentD1Ev
  _ZNSt20bad_array_new_lengthD1Ev _ZNSt9bad_allocD2Ev _ZNSt9exceptionD2Ev
  _ZTISt12length_error _ZTISt12out_of_range _ZTISt13runtime_error _ZTISt14overflow_error
  _ZTISt16invalid_argument _ZTISt20bad_array_new_length _ZTISt9bad_alloc _ZTISt9exception
  _ZTVSt11logic_error _ZTVSt9bad_alloc _ZTVSt12length_error _ZTVSt12out_of_range _ZTVSt13runtime_error
  _ZTVSt14overflow_error _ZTVSt16invalid_argument _ZTVSt20bad_array_new_length)
target_link_libraries(native PRIVATE libcxx stdc++ gcc_s)
target_link_options(native PRIVATE -nostdlib++ -Wl,-z,defs -Wl,--gc-sections -s)
set_target_properties(native PROPERTIES BUILD_WITH_INSTALL_RPATH ON)
